"""The examples in `scripts/examples` run as they are, on a tiny model, one after the other."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import rrm_lm

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")  # TRL's GRPO calls them
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
    capsys.readouterr()
    run(monkeypatch, "trl_grpo.py", tiny, rm, tmp_path / "grpo")
    assert "step 2: mean reward" in capsys.readouterr().out
    monkeypatch.setenv("REWARD_MODEL", str(rm))
    reward = rrm_lm.RewardModel.from_pretrained(rm).score("who?", ["yes"])[0]
    verl = runpy.run_path(str(EXAMPLES / "verl_reward.py"))["compute_score"]
    assert verl("d", "yes", "", {"prompt": "who?"}) == pytest.approx(float(reward), abs=1e-4)
    openrlhf = runpy.run_path(str(EXAMPLES / "openrlhf_reward.py"))["reward_func"]
    assert openrlhf(["who?yes"], ["who?"], [""])["rewards"].tolist() == pytest.approx([float(reward)], abs=1e-4)
    assert {file.name for file in EXAMPLES.glob("*.py")} == {
        *("train_reward.py", "score.py", "evaluate.py", "respond.py", "ppo.py"),
        *("trl_grpo.py", "verl_reward.py", "openrlhf_reward.py"),
    }
