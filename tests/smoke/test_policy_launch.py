"""Two processes train the same policy as one. A real launch on the CPU; the processes communicate through gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.smoke.commands import adapter, read
from tests.smoke.conftest import TrainedReward
from tests.smoke.launches import launch_sharded, run_script
from tests.smoke.policies import measured, teach, updates, write_prompts
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_training(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """Both write the same kinds of files, and what every process computes independently is the same."""
    prompts = write_prompts(tmp_path / "data")
    gold = f"{prompts.parent / 'rewards.py'}:gold"
    words = ("--eval_prompts", prompts.parent / "heldout.jsonl", "--gold", gold, "--max_steps", 2)
    one = teach(capsys, tiny, prompts, tmp_path / "one", *words)
    assert one.code == 0, one.err
    more = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 2, "--use_cpu", "false")
    more += ("--allow_code", "--save_strategy", "steps", "--save_steps", 1)
    done = run_script("train_policy.py", *more, "--output_dir", tmp_path / "two")
    assert "[process 0] saved to" in done.stderr and "[process 1] saved to" not in done.stderr
    assert done.stderr.count("update 1 of 2: ") == 1 and done.stderr.count("One prompt as the model sees it") == 1
    assert {path.name for path in (tmp_path / "two").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert read(tmp_path / "two" / "run.json")["outcome"] == "finished"
    # The policy before training is the same, and so are the episodes of an update.
    assert measured(tmp_path / "two")[0] == measured(tmp_path / "one")[0]
    assert [entry["episode"] for entry in updates(tmp_path / "two")] == [4, 8]
    assert "2 updates of 4 episodes each" in (tmp_path / "two" / "report.html").read_text()
    mine, theirs = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert mine.keys() == theirs.keys() and all(torch.isfinite(tensor).all() for tensor in theirs.values())


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_sharded_training(algorithm: str, tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """`configs/accelerate/fsdp2.yaml` through rrm-lm's flags: half of the model on each of two processes.

    They draw what one draws and learn what it learns, by plain gradient descent: Adam's first step is the sign of the
    gradient, also where that is nothing but rounding.
    """
    prompts = write_prompts(tmp_path / "data")
    words = ("--algorithm", algorithm, "--max_steps", 2, "--samples_per_prompt", 2, "--optim", "sgd")
    words += ("--learning_rate", 0.01, "--max_grad_norm", 0.1)
    one = teach(capsys, tiny, prompts, tmp_path / "one", *words)
    assert one.code == 0, one.err
    more = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 2, "--use_cpu", "false")
    reward = ("--reward_function", f"{prompts.parent / 'rewards.py'}:counting")
    launch_sharded("policy", *more, *reward, "--output_dir", tmp_path / "two")
    for mine, theirs in zip(updates(tmp_path / "two"), updates(tmp_path / "one"), strict=True):
        for name in ("objective/scores", "objective/kl", "val/response_length", "episode"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    mine, theirs = adapter(tmp_path / "two"), adapter(tmp_path / "one")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_a_reward_model_on_another_backbone_is_sharded_too(
    algorithm: str, tiny: Path, trained: TrainedReward, tmp_path: Path, capsys: Any
) -> None:
    """It gives the rewards of one process."""
    base = save_tiny_model(tmp_path / "base", seed=3, tokenizer=AutoTokenizer.from_pretrained(tiny))
    prompts = write_prompts(tmp_path / "data")
    words = ("--reward_model", trained.folder, "--algorithm", algorithm, "--max_steps", 2, "--samples_per_prompt", 2)
    words += ("--optim", "sgd", "--learning_rate", 0.01, "--max_grad_norm", 0.1)
    one = teach(capsys, base, prompts, tmp_path / "one", *words)
    assert one.code == 0 and "gets its own backbone" in one.err, one.err
    assert "a response without text" not in one.err  # it gets the lowest reward of its process
    more = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 2, "--use_cpu", "false")
    err = launch_sharded("policy", *more, "--output_dir", tmp_path / "two")
    assert err.count("[process 0] FSDP2 over 2 processes") == 2, err
    for mine, theirs in zip(updates(tmp_path / "two"), updates(tmp_path / "one"), strict=True):
        for name in ("objective/scores", "objective/kl", "val/response_length"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
