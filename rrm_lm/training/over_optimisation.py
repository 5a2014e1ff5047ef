"""Monitor over-optimization while a policy is trained: measure, record, report, and optionally stop.

The callback does not depend on models. It gets a function that takes a measurement, and one that interprets all of them
(see `evaluation/policies/monitors.py`). It works with any Hugging Face or TRL trainer that calls its callbacks.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.storage import commit_folder, verify, write_json, write_jsonl

logger = logging.getLogger(__name__)

FILE_NAME = "over_optimisation.jsonl"
BEST = "best"
_STAGED = ".best.staging-policy"  # hidden; the name marks it for deletion after a crash
_STEP_FILE = "held_out.json"
NAMES = ("gold", "proxy")
_NUMBERS = ("proxy", "gold", "kl")  # of a probe


@dataclass(frozen=True, slots=True)
class Probe:
    """One response that the policy sampled for a held-out prompt."""

    prompt: int  # index of the prompt in the held-out set, from 0
    prompt_id: str  # the original request of the prompt; intervals are clustered by it
    response: str
    proxy: float  # the optimized reward; NaN if there is none
    gold: float  # the reward that the policy is judged by (gold, or from an independent model); NaN if there is none
    kl: float  # log p(response) under the policy minus that under the reference, in nats
    tokens: int  # number of generated tokens
    finished: bool  # whether the response ended before the limit


@dataclass(frozen=True, slots=True)
class Measurement:
    """The responses at one step, always to the same prompts; `names` of the gold and the proxy reward."""

    step: int
    samples: tuple[Probe, ...]
    names: tuple[str, str] = NAMES


@dataclass(frozen=True, slots=True)
class Reading:
    """The interpretation of all measurements so far."""

    sentence: str  # a summary for the log
    stop: str = ""  # why training should stop; "" to continue
    numbers: Mapping[str, float] = field(default_factory=dict)  # values to log, by name
    best_step: int | None = None  # the step with the best gold reward; None without gold rewards


Measure = Callable[[int], Sequence[Probe]]
Read = Callable[[Sequence[Measurement]], Reading]


class BestPolicy:
    """The best policy on the held-out prompts so far, in a folder that loads like any other policy.

    It is in the subfolder :data:`BEST` of the output folder. `save` writes the current policy into a folder, and `load`
    restores it; all processes call both. `writes` says whether this process creates folders, and `wait` returns when
    all processes have called it.
    """

    def __init__(
        self,
        folder: str | Path,
        save: Callable[[str], object],
        load: Callable[[str], object],
        *,
        writes: bool = True,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = Path(folder) / BEST
        self._staged = Path(folder) / _STAGED
        self._save, self._load, self._writes, self._wait = save, load, writes, wait

    def keep(self, step: int) -> None:
        """Save the current policy, after `step`, as the best one."""
        if self._writes:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged.mkdir(parents=True)
        self._wait()
        self._save(str(self._staged))
        self._wait()
        if self._writes:
            write_json(self._staged / _STEP_FILE, {"step": step})
            commit_folder(self._staged, self.folder, replace=True)
        self._wait()

    def put_back(self, step: int | None) -> bool:
        """Restore the policy of `step`; return False if the folder does not hold an intact copy of it."""
        problems = verify(self.folder)
        if not problems and json.loads((self.folder / _STEP_FILE).read_text(encoding="utf-8"))["step"] != step:
            problems = ["it is of another step"]
        if problems:
            logger.warning("the policy of step %s cannot be restored: %s: %s", step, self.folder, "; ".join(problems))
            return False
        self._load(str(self.folder))
        logger.info("restored the policy of step %s, the best on the held-out prompts", step)
        return True


class OverOptimisationCallback(TrainerCallback):
    """Measures a policy on held-out prompts before the first step, every few steps, and after the last one.

    The file has one line per measurement and is replaced atomically, so it can be read during training. A resumed run
    keeps the measurements up to the step that it resumes from.

    Args:
        measure: Maps a step to samples of the current policy, always for the same prompts. It must restore the global
            random state, or a resumed run would differ. In a distributed run, every process calls it and must get the
            same samples.
        read: Interprets the measurements so far.
        folder: The run's output folder, for :data:`FILE_NAME`.
        names: Names of the gold and the proxy reward in reports.
        every: Steps between measurements.
        stop: Whether to end training when `read` returns a reason; otherwise the reason is only logged, once.
        best: With `stop`: keeps the best policy, which is restored if training stops for this reason.
        log: The trainer's `log`, called with the numbers of every measurement.
        show: Called with every measurement, to show its samples.

    Raises:
        ConfigError: `every` is less than 1.
    """

    def __init__(
        self,
        measure: Measure,
        read: Read,
        folder: str | Path,
        *,
        names: tuple[str, str] = NAMES,
        every: int = 10,
        stop: bool = False,
        best: BestPolicy | None = None,
        log: Callable[[dict[str, float]], object] | None = None,
        show: Callable[[Measurement], object] | None = None,
    ) -> None:
        if every < 1:
            raise ConfigError(f"{every} steps between two measurements", where="every", expected="at least 1")
        self.measure, self.read, self.file = measure, read, Path(folder) / FILE_NAME
        self.names, self.every, self.stop, self.log, self.show = names, every, stop, log, show
        self.best = best if stop else None
        self.measurements: list[Measurement] = []
        self.stopped_because = ""
        self.put_back: int | None = None  # the step of the restored policy, if it is not the last

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure at the start of the run, or read the measurements of the resumed run."""
        earlier = read_measurements(self.file) if state.global_step > 0 and self.file.is_file() else []
        self.measurements = [one for one in earlier if one.step <= state.global_step]
        self.stopped_because, self.put_back = "", None
        if not self.measurements:
            self._take(state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The last step counts too: after it, trackers close their runs before the training ends for this callback.
        if state.global_step % self.every == 0 or 0 < state.max_steps <= state.global_step:
            self._take(state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure the final policy; after over-optimisation, restore the best one if asked to."""
        self._take(state, control)
        if self.best is None or not self.stopped_because:
            return
        best = self.read(self.measurements).best_step
        if self.best.put_back(best):
            self.put_back = best

    def _take(self, state: TrainerState, control: TrainerControl) -> None:
        step = state.global_step
        if self.measurements and self.measurements[-1].step == step:
            return
        taken = Measurement(step, tuple(self.measure(step)), self.names)
        if self.measurements and _prompts(self.measurements[-1]) != _prompts(taken):
            logger.warning("the held-out prompts have changed: measurements start over at step %d", step)
            self.measurements = []
        self.measurements.append(taken)
        reading = self.read(self.measurements)
        if state.is_world_process_zero:
            write_jsonl(self.file, map(asdict, self.measurements))
            logger.info("step %d, held out: %s", step, reading.sentence)
        if self.best is not None and reading.best_step == step:
            self.best.keep(step)
        if self.log is not None and reading.numbers:
            self.log({f"held_out/{name}": value for name, value in reading.numbers.items()})
        if self.show is not None:
            self.show(taken)
        if reading.stop and not self.stopped_because:
            self.stopped_because = reading.stop
            if state.is_world_process_zero:
                logger.warning("over-optimisation at step %d: %s", step, reading.stop)
        if reading.stop and self.stop:
            control.should_training_stop = True


def _prompts(one: Measurement) -> set[tuple[int, str]]:
    return {(probe.prompt, probe.prompt_id) for probe in one.samples}


def read_measurements(file: str | Path) -> list[Measurement]:
    """Read the measurements in a file that the callback wrote, by step. Raises CheckpointError if the file cannot be
    read, or the callback did not write it.
    """
    measurements = []
    try:
        with Path(file).open(encoding="utf-8") as lines:  # not splitlines(): texts may contain other line separators
            for line in lines:
                row = json.loads(line)
                gold, proxy = row.get("names", NAMES)
                # JSON has null instead of NaN.
                numbers = [{n: float("nan" if one[n] is None else one[n]) for n in _NUMBERS} for one in row["samples"]]
                samples = tuple(Probe(**one | own) for one, own in zip(row["samples"], numbers, strict=True))
                measurements.append(Measurement(int(row["step"]), samples, (str(gold), str(proxy))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The measurements cannot be read ({error})",
            where=f"{file}, line {len(measurements) + 1}",
            expected='lines {"step": ..., "samples": [...]}, as PPO writes them',
            remedy="move the file away, or copy it again",
        ) from error
    return sorted(measurements, key=lambda one: one.step)
