"""Two processes train the same SFT policy as one. A real launch on the CPU; the processes communicate through gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.smoke.commands import adapter, flags, pair_rows, read, run, write_rows
from tests.smoke.launches import run_script

pytestmark = pytest.mark.slow


def test_training(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """Half of the batch on each of two processes equals the full batch on one, however many tokens each half has.

    Plain gradient descent: Adam's first step is the sign of the gradient, also where that is nothing but rounding.
    """
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(24))
    held = write_rows(tmp_path / "held.jsonl", pair_rows(5, seed=3))
    settings = {
        "model_name_or_path": tiny, "dataset_name": data, "eval_dataset_name": held, "sft_on": "chosen",
        "max_length": 120, "max_steps": 3, "save_strategy": "steps", "save_steps": 2, "warmup_steps": 0,
        "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0, "lr_scheduler_type": "constant", "lora_r": 4,
        "dtype": "float32", "disable_tqdm": "true", "per_device_train_batch_size": 8,
    }  # fmt: skip
    one = run(capsys, "sft", *flags(settings), "--output_dir", tmp_path / "one", "--use_cpu", "true")
    assert one.code == 0, one.err
    more = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 4, "--use_cpu", "false")
    done = run_script("train_sft.py", *more, "--output_dir", tmp_path / "two")
    assert "[process 0] saved to" in done.stderr and "[process 1] saved to" not in done.stderr
    mine, theirs = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], atol=1e-5, rtol=1e-4, msg=name)
    for name in ("eval_loss", "eval_loss_difference"):
        results = [read(tmp_path / folder / "eval_results.json")[name] for folder in ("one", "two")]
        assert results[0] == pytest.approx(results[1], abs=1e-4)
    assert read(tmp_path / "two" / "run.json")["outcome"] == "finished"
    assert {path.name for path in (tmp_path / "two").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
