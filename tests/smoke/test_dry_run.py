"""`--dry_run true`: one step with the longest rows, how much memory it took, and nothing in the output folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.api import dry_run
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.smoke.commands import run, write_rows
from tests.smoke.launches import launch_sharded
from tests.smoke.policies import QUESTIONS, write_prompts
from tests.tiny import prompt_of, tiny_chat


def words_of(command: str, tiny: Path, folder: Path) -> list[Any]:
    words: list[Any] = ["--model_name_or_path", tiny, "--output_dir", folder / "out", "--dry_run", "true"]
    if command in ("ppo", "rloo"):
        prompts = write_prompts(folder / "data")
        words += ["--prompts", prompts, "--reward_function", f"{prompts.parent / 'rewards.py'}:gold", "--allow_code"]
        words += ["--gold", f"{prompts.parent / 'rewards.py'}:gold", "--algorithm", command]
        return ["policy", *words, "--response_length", 9, "--samples_per_prompt", 2, "--per_device_train_batch_size", 4]
    asked = [f"who lives in the sea {'and the moon ' * n}?" for n in range(12)]
    rows: list[Any] = [{"prompt": one, "chosen": "the moon", "rejected": "no"} for one in asked]
    more = ("--sft_on", "chosen") if command == "sft" else ()
    return [command, *words, "--dataset_name", write_rows(folder / "mine.jsonl", rows), *more]


@pytest.mark.parametrize("command", ["reward", "sft", "ppo", "rloo"])
def test_it_trains_one_step_and_leaves_nothing(command: str, tiny: Path, tmp_path: Path, capsys: Any) -> None:
    done = run(capsys, *words_of(command, tiny, tmp_path))
    assert done.code == 0, done.err
    assert re.search(
        r"one step with the longest rows is done; largest memory of the whole process: process 0 \d", done.err
    )
    assert "nothing was saved; leave out --dry_run to train" in done.err
    assert "saved to" not in done.err and not (tmp_path / "out").exists()


def test_the_step_has_the_longest_rows(
    tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {"rows": [], "responses": [], "prompts": []}
    step, score = RewardTrainer.training_step, PPOTrainer.score

    def watched(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        seen["rows"] += [len(row) for example in inputs for row in example.rows]
        return step(self, model, inputs, *more)

    def scored(self: Any, rollouts: Any) -> Any:
        seen["responses"] += [len(ids) for ids in rollouts.responses]
        seen["prompts"] += [len(item.ids) for item in rollouts.items]
        return score(self, rollouts)

    monkeypatch.setattr(RewardTrainer, "training_step", watched)
    monkeypatch.setattr(PPOTrainer, "score", scored)
    words = words_of("reward", tiny, tmp_path)
    assert run(capsys, *words, "--per_device_train_batch_size", 2, "--eval_fraction", 0).code == 0
    assert len(seen["rows"]) == 2 and max(seen["rows"]) - min(seen["rows"]) == 3  # of twelve, the two longest
    assert run(capsys, *words_of("ppo", tiny, tmp_path)).code == 0
    assert seen["responses"] == [9] * 4
    two = sorted(seen["prompts"])[::2]  # two samples of each
    lengths = sorted(len(tiny_chat().prompt_ids(prompt_of(one))) for one in QUESTIONS)
    assert two == lengths[-2:]


def test_a_cuda_peak_is_that_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert dry_run.peak_bytes(torch.device("cuda")) == 123
    assert dry_run.peak_bytes(torch.device("cpu")) > 10**8


@pytest.mark.slow
def test_every_process_is_listed(tiny: Path, tmp_path: Path) -> None:
    err = launch_sharded(*words_of("reward", tiny, tmp_path))
    assert re.search(r"process 0 \d\.\d\d GB, process 1 \d\.\d\d GB", err)
    assert not (tmp_path / "out").exists()
