"""SIGTERM and Ctrl-C: the step is finished and saved, the exit code names the signal, and the run can be resumed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from rrm_lm.cli.main import main
from rrm_lm.launch import signals
from rrm_lm.storage import verify
from tests.smoke.commands import Result, pair_rows, read, run, same, train, write_rows
from tests.smoke.policies import same_values, teach, write_prompts

SAVES = ("--save_strategy", "steps", "--save_steps", 10, "--max_steps", 5)
STOPS: dict[str, tuple[signal.Signals, int]] = {
    "reward": (signal.SIGTERM, 143), "sft": (signal.SIGINT, 130), "ppo": (signal.SIGTERM, 143),
    "rloo": (signal.SIGINT, 130),
}  # fmt: skip


class Send(TrainerCallback):
    """Sends signals to this process in the middle of a step, `apart` seconds apart."""

    def __init__(self, signums: list[int], step: int, apart: float = 0.0) -> None:
        self.signums, self.step, self.apart = signums, step, apart

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for number, signum in enumerate(self.signums):
                time.sleep(self.apart * (number > 0))
                os.kill(os.getpid(), signum)


def sending(monkeypatch: Any, callback: TrainerCallback) -> None:
    own = signals.steps_are_finished

    def finished(trainer: Trainer, **more: Any) -> Any:
        trainer.add_callback(callback)
        return own(trainer, **more)

    monkeypatch.setattr("rrm_lm.api.output_run.steps_are_finished", finished)


@pytest.fixture
def start(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> Callable[..., Result]:
    """Run a short training of one kind in a folder."""
    prompts = write_prompts(tmp_path / "data")
    chosen = write_rows(tmp_path / "data" / "chosen.jsonl", pair_rows(12))

    def started(kind: str, folder: Path, *words: object) -> Result:
        if kind == "reward":
            return train(capsys, tiny, pairs, folder, *SAVES, *words)
        if kind == "sft":
            own = ("--sft_on", "chosen", "--max_length", 120, "--per_device_train_batch_size", 4, "--dtype", "float32")
            own = (*own, "--use_cpu", "true", "--disable_tqdm", "true", "--lora_r", 4)
            return run(
                capsys, "sft", "--model_name_or_path", tiny, "--dataset_name", chosen, "--output_dir", folder, *own,
                *SAVES, *words,
            )  # fmt: skip
        more = ("--algorithm", "rloo", "--samples_per_prompt", 2) if kind == "rloo" else ()
        return teach(capsys, tiny, prompts, folder, *SAVES, *more, *words)

    return started


@pytest.mark.parametrize("kind", STOPS)
def test_a_signal_ends_training_after_the_step(
    kind: str, start: Callable[..., Result], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    signum, code = STOPS[kind]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert start(kind, tmp_path / "whole").code == 0
    steps = 2 if kind == "rloo" else 1  # in an update, after which alone it can go on
    with monkeypatch.context() as patch:
        sending(patch, Send([signum], 2 * steps))  # in the third update
        stopped = start(kind, tmp_path / "parts")
    assert stopped.code == code, stopped.err
    assert {number: signal.getsignal(number) for number in before} == before
    checkpoint = tmp_path / "parts" / f"checkpoint-{3 * steps}"
    assert [path.name for path in (tmp_path / "parts").glob("checkpoint-*")] == [checkpoint.name]
    assert verify(checkpoint) == []
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    assert read(tmp_path / "parts" / "run.json")["outcome"] == "stopped by Interrupted"
    assert stopped.err.count("interrupted") == 1 and f"saved: {checkpoint}" in stopped.err
    command = re.search(r"resume: rrm-lm (.*)", stopped.err)
    assert command
    assert main(shlex.split(command[1])) == 0  # as it was printed
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert kind != "ppo" or same_values(tmp_path / "whole", tmp_path / "parts")


def test_a_second_signal_stops_at_once(start: Callable[..., Result], tmp_path: Path, monkeypatch: Any) -> None:
    sending(monkeypatch, Send([signal.SIGINT, signal.SIGINT], 2, apart=1.1))
    stopped = start("reward", tmp_path / "out", "--save_steps", 1)
    assert stopped.code == 130
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert "resume:" not in stopped.err


def test_signals_that_come_together_are_one(start: Callable[..., Result], tmp_path: Path, monkeypatch: Any) -> None:
    sending(monkeypatch, Send([signal.SIGTERM, signal.SIGTERM], 2, apart=0.1))
    stopped = start("reward", tmp_path / "out")
    assert stopped.code == 143 and f"saved: {tmp_path / 'out' / 'checkpoint-3'}" in stopped.err


def test_signal_before_training_exits_cleanly(start: Callable[..., Result], tmp_path: Path, monkeypatch: Any) -> None:
    def load(*_: Any, **__: Any) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(20)

    monkeypatch.setattr("rrm_lm.api.reward.model.load_tokenizer", load)
    stopped = start("reward", tmp_path / "out")
    assert stopped.code == 143 and stopped.err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "out" / ".lock.owner.json").exists()  # the lock was given back
