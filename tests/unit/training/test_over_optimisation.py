"""The callback that watches a policy in training, on a trainer that is nothing but its callbacks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.training.over_optimisation import (
    BEST,
    FILE_NAME,
    BestPolicy,
    Measurement,
    OverOptimisationCallback,
    Probe,
    Reading,
    read_measurements,
)


def probes(step: int, *, prompts: int = 2, gold: float | None = None) -> list[Probe]:
    worth = -float(step) if gold is None else gold
    return [
        Probe(i, f"request {i}", f"answer {i} at {step}", 0.5 * step, worth, 0.1 * step, 7, bool(i))
        for i in range(prompts)
    ]


class Watch:
    """A reader that remembers what it was shown and stops at a step."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.stop_at, self.seen = stop_at, []

    def __call__(self, measurements: Sequence[Measurement]) -> Reading:
        steps = [one.step for one in measurements]
        self.seen.append(steps)
        stop = f"it fell at {steps[-1]}" if steps[-1] >= self.stop_at else ""
        return Reading(f"measured {len(steps)} times", stop, {"gold": -float(steps[-1])})


def train(callback: OverOptimisationCallback, steps: int, start: int = 0, main: bool = True) -> int:
    """Call the callback as a trainer does; returns the step that training ended at."""
    state, control, args = TrainerState(), TrainerControl(), None
    state.global_step, state.is_world_process_zero = start, main
    callback.on_train_begin(args, state, control)
    while state.global_step < steps and not control.should_training_stop:
        state.global_step += 1
        callback.on_step_end(args, state, control)
    callback.on_train_end(args, state, control)
    return state.global_step


def steps_in(folder: Path) -> list[int]:
    return [one.step for one in read_measurements(folder / FILE_NAME)]


def test_it_measures_before_every_few_steps_and_after(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure(step: int) -> list[Probe]:
        asked.append(step)
        return probes(step)

    watch = Watch()
    assert train(OverOptimisationCallback(measure, watch, tmp_path, every=4), 10) == 10
    assert asked == steps_in(tmp_path) == [0, 4, 8, 10]
    assert watch.seen == [[0], [0, 4], [0, 4, 8], [0, 4, 8, 10]]


def test_the_last_step_is_not_measured_twice(tmp_path: Path) -> None:
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=5), 10)
    assert steps_in(tmp_path) == [0, 5, 10]


def test_the_file_is_whole_after_every_measurement(tmp_path: Path) -> None:
    lines = []

    def measure(step: int) -> list[Probe]:
        file = tmp_path / FILE_NAME
        lines.append(len(file.read_text().splitlines()) if file.is_file() else 0)
        return probes(step)

    train(OverOptimisationCallback(measure, Watch(), tmp_path / "", every=1), 3)
    assert lines == [0, 1, 2, 3]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    callback = OverOptimisationCallback(
        lambda step: probes(step, gold=math.nan if step else 1.0), Watch(), tmp_path, every=2, names=("truth", "model")
    )
    train(callback, 2)
    first, second = read_measurements(tmp_path / FILE_NAME)
    assert first == Measurement(0, tuple(probes(0, gold=1.0)), ("truth", "model"))
    assert math.isnan(second.samples[0].gold) and second.samples[1].finished is True
    row = json.loads((tmp_path / FILE_NAME).read_text().splitlines()[1])
    assert row["samples"][0]["gold"] is None and row["samples"][0]["response"] == "answer 0 at 2"


def test_it_stops_only_if_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    going = OverOptimisationCallback(probes, Watch(stop_at=4), tmp_path / "a", every=2)
    assert train(going, 8) == 8
    assert caplog.text.count("over-optimisation at step 4: it fell at 4") == 1
    assert "at step 6" not in caplog.text
    stopping = OverOptimisationCallback(probes, Watch(stop_at=4), tmp_path / "b", every=2, stop=True)
    assert train(stopping, 8) == 4
    assert stopping.stopped_because == "it fell at 4"


def test_the_trainers_log_gets_the_numbers(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=2, log=logged.append), 2)
    assert logged == [{"held_out/gold": 0.0}, {"held_out/gold": -2.0}]


def test_other_processes_measure_and_decide_but_do_not_write(tmp_path: Path) -> None:
    callback = OverOptimisationCallback(probes, Watch(stop_at=2), tmp_path, every=2, stop=True)
    assert train(callback, 8, main=False) == 2
    assert not (tmp_path / FILE_NAME).exists()


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(OverOptimisationCallback(probes, Watch(), whole, every=2), 8)
    train(OverOptimisationCallback(probes, Watch(), parts, every=2), 6)  # killed after its checkpoint at step 4
    watch = Watch()
    train(OverOptimisationCallback(probes, watch, parts, every=2), 8, start=4)
    assert (parts / FILE_NAME).read_bytes() == (whole / FILE_NAME).read_bytes()
    assert watch.seen[-1] == [0, 2, 4, 6, 8]


def test_a_new_run_does_not_take_up_an_old_one(tmp_path: Path) -> None:
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=2), 8)
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=2), 2)
    assert steps_in(tmp_path) == [0, 2]


def test_other_prompts_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=2), 4)
    other = OverOptimisationCallback(lambda step: probes(step, prompts=3), Watch(), tmp_path, every=2)
    train(other, 6, start=4)
    assert steps_in(tmp_path) == [6]
    assert "held-out prompts have changed" in caplog.text


def test_texts_may_hold_any_end_of_line(tmp_path: Path) -> None:
    ends = "a\u2028b\u2029c\x85d\x0ce\r\nf"
    samples = [replace(one, prompt_id=ends) for one in probes(0)]
    train(OverOptimisationCallback(lambda step: samples, Watch(), tmp_path, every=2), 2)
    assert {one.prompt_id for found in read_measurements(tmp_path / FILE_NAME) for one in found.samples} == {ends}


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    train(OverOptimisationCallback(probes, Watch(), tmp_path, every=2), 2)
    file.write_text(file.read_text() + '{"step": 4, "samples": [{"prompt": 0}]}\n')
    with pytest.raises(CheckpointError, match=r"over_optimisation\.jsonl, line 3"):
        read_measurements(file)
    file.write_text("[]\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_measurements(file)


def test_every_must_be_a_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 steps between two measurements"):
        OverOptimisationCallback(probes, Watch(), tmp_path, every=0)


class Policy:
    """A policy that is a number, worth the most at 4, saved and loaded in a file."""

    def __init__(self) -> None:
        self.number = 0

    def measure(self, step: int) -> list[Probe]:
        self.number = step
        return probes(step, gold=-abs(step - 4.0))

    def save(self, folder: str) -> None:
        (Path(folder) / "weights").write_text(str(self.number))

    def load(self, folder: str) -> None:
        self.number = int((Path(folder) / "weights").read_text())

    def callback(self, folder: Path, stop_at: int = 8) -> OverOptimisationCallback:
        best = BestPolicy(folder, self.save, self.load)
        return OverOptimisationCallback(self.measure, Best(stop_at), folder, every=2, stop=True, best=best)


class Best(Watch):
    """Says which measurement had the most gold, too."""

    def __call__(self, measurements: Sequence[Measurement]) -> Reading:
        best = max(measurements, key=lambda one: one.samples[0].gold).step
        return replace(super().__call__(measurements), best_step=best)


def test_the_best_policy_is_put_back(tmp_path: Path) -> None:
    policy = Policy()
    callback = policy.callback(tmp_path)
    assert train(callback, 20) == 8
    assert policy.number == callback.put_back == 4
    assert (tmp_path / BEST / "weights").read_text() == "4"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_last_policy_stays_where_nothing_fell(tmp_path: Path) -> None:
    policy = Policy()
    callback = policy.callback(tmp_path, stop_at=100)
    assert train(callback, 6) == 6
    assert policy.number == 6 and callback.put_back is None


def test_a_resumed_run_has_the_best_policy_of_before(tmp_path: Path) -> None:
    train(Policy().callback(tmp_path, stop_at=100), 6)
    policy = Policy()
    assert train(policy.callback(tmp_path), 20, start=6) == 8
    assert policy.number == 4


@pytest.mark.parametrize(("fault", "said"), [("later", "of another step"), ("broken", "weights"), ("gone", "no such")])
def test_a_best_policy_that_is_not_there_is_named(
    fault: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy()
    callback = policy.callback(tmp_path)
    best = callback.best
    assert best is not None
    policy.number = 4
    best.keep(6 if fault == "later" else 4)
    if fault == "broken":
        (tmp_path / BEST / "weights").write_text("5")
    elif fault == "gone":
        shutil.rmtree(tmp_path / BEST)
    policy.number = 8
    assert not best.put_back(4)
    assert policy.number == 8
    assert "policy of step 4 cannot be restored" in caplog.text and said in caplog.text


def test_a_real_trainer_carries_it(tmp_path: Path) -> None:
    """The Hugging Face trainer calls it with its own state, stops when told, and resumes with it."""
    from tests.tiny_training import config, trained

    callback: Any = OverOptimisationCallback(probes, Watch(stop_at=4), tmp_path / "out", every=2, stop=True)
    trainer = trained(config(tmp_path / "out", max_steps=9), callbacks=[callback])
    assert trainer.state.global_step == 4
    assert steps_in(tmp_path / "out") == [0, 2, 4]
