"""Two processes give the same results as one. A real launch on the CPU; the processes communicate through gloo."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.smoke.commands import adapter, contents, pair_rows, read, rewards_of, run, train, write_rows
from tests.smoke.conftest import TrainedReward
from tests.smoke.launches import PROGRAM, ROOT, environment, launch_sharded, run_script

pytestmark = pytest.mark.slow


def launch(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    done = run_script(script, *words)
    assert done.stdout.count("on held-out preferences") == 1  # only one process prints
    return done


def test_evaluation(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """With a critic, and a model that writes critiques first: it does not matter which process scores a response."""
    model = shutil.copytree(trained.folder, tmp_path / "first")
    settings = {**read(model / "reward_model.json"), "critique_first": True, "max_critique_length": 6}
    (model / "reward_model.json").write_text(json.dumps(settings))
    words = ("--model", model, "--dataset", trained.heldout, "--dtype", "float32", "--critique_samples", 2)
    words += ("--critic", trained.folder)
    launch("evaluate.py", *words, "--output_dir", tmp_path / "two")
    assert run(capsys, "evaluate", *words, "--output_dir", tmp_path / "one").code == 0
    assert rewards_of(tmp_path / "two") == rewards_of(tmp_path / "one")  # to the last bit
    assert contents(tmp_path / "two").keys() == contents(tmp_path / "one").keys()
    assert contents(tmp_path / "two")["critiques.jsonl"] == contents(tmp_path / "one")["critiques.jsonl"]


def test_scores(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """Through rrm-lm's flags: the same lines in the same order, printed once."""
    words = ("--model", trained.folder, "--dataset", trained.heldout, "--dtype", "float32")
    assert run(capsys, "score", *words, "--output_file", tmp_path / "one.jsonl").code == 0
    done = subprocess.run(
        list(map(str, (*PROGRAM, "score", "--accelerate_config", "cpu2", "--num_processes", 2, *words))),
        capture_output=True, text=True, check=False, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "one.jsonl").read_text()
    assert done.stdout.count("\n") == 24 and "error" not in done.stderr


def test_sharded(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """Evaluated and scored with half of the model on each of two processes: the same rewards, printed once."""
    words = ("--model", trained.folder, "--dataset", trained.heldout, "--dtype", "float32")
    ways = {"evaluate": ("--output_dir", "fsdp2"), "score": ("--output_file", "fsdp2_offload")}
    for command, (output, config) in ways.items():
        one, two = tmp_path / f"{command}_one", tmp_path / f"{command}_two"
        assert run(capsys, command, *words, output, one).code == 0
        launch_sharded(command, *words, output, two, config=config)
    one, two = rewards_of(tmp_path / "evaluate_one"), rewards_of(tmp_path / "evaluate_two")
    assert torch.tensor(two) == pytest.approx(torch.tensor(one), rel=1e-5)
    assert contents(tmp_path / "evaluate_two").keys() == contents(tmp_path / "evaluate_one").keys()
    assert (tmp_path / "score_two").read_text() == (tmp_path / "score_one").read_text()


def test_training(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """Half of the batch on each of two processes equals the full batch on one."""
    train_on_one(capsys, tiny, tmp_path)
    words = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 4)
    done = launch("train_reward.py", *words, "--use_cpu", "false", "--output_dir", tmp_path / "two")
    assert "DDP over 2 processes: each holds at most 100% of the model's" in done.stderr
    assert "[process 0] saved to" in done.stderr and "[process 1] saved to" not in done.stderr
    check_same(tmp_path)
    assert {path.name for path in (tmp_path / "two").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_sharded_training(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """`configs/accelerate/fsdp2.yaml` through rrm-lm's flags: half of the model on each of two processes."""
    train_on_one(capsys, tiny, tmp_path)
    words = ("--config", tmp_path / "one" / "config.yaml", "--per_device_train_batch_size", 4, "--use_cpu", "false")
    launch_sharded("reward", *words, "--save_strategy", "no", "--output_dir", tmp_path / "two")
    check_same(tmp_path)


def train_on_one(capture: Any, model: Path, folder: Path) -> None:
    """One process trains into the folder `one`.

    By plain gradient descent: Adam's first step is the sign of the gradient, also where that is nothing but rounding.
    """
    data = write_rows(folder / "pairs.jsonl", pair_rows(24))
    held = write_rows(folder / "held.jsonl", pair_rows(5, seed=3))
    more = (
        *("--eval_dataset_name", held, "--save_strategy", "steps", "--save_steps", 2),
        *("--optim", "sgd", "--learning_rate", 0.02, "--max_grad_norm", 0, "--lr_scheduler_type", "constant"),
    )
    assert train(capture, model, data, folder / "one", *more, "--per_device_train_batch_size", 8).code == 0


def check_same(folder: Path) -> None:
    """The adapters and rewards of the folders `one` and `two` are the same, to rounding."""
    one, two = adapter(folder / "one"), adapter(folder / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=name)
    torch.testing.assert_close(
        torch.tensor(rewards_of(folder / "two")), torch.tensor(rewards_of(folder / "one")), atol=1e-4, rtol=1e-4
    )
    assert read(folder / "two" / "run.json")["outcome"] == "finished"
