"""On a GPU, the sizes that fit into its memory are shown and recorded: a run can be repeated on another machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rrm_lm.planning import sizing
from rrm_lm.training.arguments import TOKENS
from tests.smoke.commands import Result, run, train
from tests.smoke.policies import teach, write_prompts

SHOWN = re.compile(r"((?:\w+ \d+(?:, )?)+): what fits into (\d+\.\d) GB of GPU memory")


def started(capsys: Any, how: str, tiny: Path, pairs: Path, folder: Path) -> Result:
    if how == "reward":
        return train(capsys, tiny, pairs, folder, "--max_steps", 1)
    more = ("--algorithm", how, "--samples_per_prompt", 2, "--max_steps", 1, "--eval_fraction", 0)
    return teach(capsys, tiny, write_prompts(folder.parent / "data"), folder, *more)


@pytest.mark.parametrize("how", ["reward", "ppo", "rloo"])
def test_sizes_are_shown_and_recorded(
    how: str, tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "free_memory", lambda backbone: 12e6)
    result = started(capsys, how, tiny, pairs, tmp_path / "out")
    assert result.code == 0, result.err
    ((sizes, memory),) = SHOWN.findall(result.err)
    shown = {name: int(tokens) for name, tokens in (one.split() for one in sizes.split(", "))}
    assert memory == "0.0" and set(shown) == set(list(TOKENS)[: 1 if how == "reward" else 2])
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert {name: settings[name] for name in shown} == shown
    assert shown["micro_batch_tokens"] != TOKENS["micro_batch_tokens"]

    monkeypatch.setattr(sizing, "free_memory", lambda backbone: 80e9)
    words = ("--config", tmp_path / "out" / "config.yaml", "--output_dir", tmp_path / "again", "--allow_code")
    again = run(capsys, "reward" if how == "reward" else "policy", *(words[:-1] if how == "reward" else words))
    assert again.code == 0, again.err
    repeated = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert {name: repeated[name] for name in shown} == shown and not SHOWN.search(again.err)
