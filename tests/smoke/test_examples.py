"""The examples in `scripts/examples` run as they are, on a tiny model, one after the other."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
def test_the_examples_run_as_they_are(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rm, ppo = tmp_path / "rm", tmp_path / "ppo"
    run(monkeypatch, "train_reward.py", tiny, rm)
    assert "eval_loss" in capsys.readouterr().out
    run(monkeypatch, "score.py", rm)
    assert capsys.readouterr().out.startswith("[")
    run(monkeypatch, "evaluate.py", rm)
    assert "heldout {'value':" in capsys.readouterr().out
    run(monkeypatch, "ppo.py", tiny, rm, ppo)
    run(monkeypatch, "respond.py", ppo)
    assert {file.name for file in EXAMPLES.glob("*.py")} == {
        *("train_reward.py", "score.py", "evaluate.py", "respond.py", "ppo.py")
    }
