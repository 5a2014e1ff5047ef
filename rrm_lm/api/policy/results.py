"""Results of `rrm-lm policy`: a JSON file, a report and a table."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_lm.api.judging import environment
from rrm_lm.api.policy.monitor import Monitor
from rrm_lm.api.policy.table import print_comparison
from rrm_lm.api.policy.trainers import Training
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports.history import Update, updates_of
from rrm_lm.evaluation.reports.training import TrainingReportData, before_and_after, render_training_report
from rrm_lm.storage import write_text

logger = logging.getLogger(__name__)


def write_results(
    folder: Path, training: Training, result: Any, monitor: Monitor | None, settings: Sequence[Any], episodes: int
) -> None:
    """Write train_results.json and report.html, and print a comparison of the policy before and after training. Every
    process calls it; the main one writes. `result` is the trainer's `TrainOutput`, `settings` the dataclasses of the
    run's settings, and `episodes` the number of episodes per update.
    """
    trainer, steps = training.trainer, training.steps_per_update
    ended = _ended_because(trainer, monitor)
    comparison = None if monitor is None else _before_and_after(monitor, trainer)
    if not trainer.is_world_process_zero():
        return
    updates = updates_of(trainer.state.log_history, steps)
    trainer.save_metrics("train", _results(trainer, result, updates, ended))
    taken = [] if monitor is None else monitor.callback.measurements
    data = TrainingReportData(
        title=_title(folder),
        updates=updates,
        planned=trainer.state.max_steps // steps,
        episodes=episodes,
        ended=ended,
        comparison=comparison,
        measurements=[dataclasses.replace(one, step=one.step // steps) for one in taken],
        configuration=_configuration(settings),
        environment=environment(),
    )
    write_text(folder / "report.html", render_training_report(data))
    if comparison is not None:
        print_comparison(comparison)
    logger.info("report: %s", folder / "report.html")


def _title(folder: Path) -> str:
    """The last two parts of the output path: the run and the stage in a pipeline."""
    return "/".join(part for part in folder.absolute().parts[-2:] if part not in ("", "/", "outputs"))


def _ended_because(trainer: Any, monitor: Monitor | None) -> str:
    """Why training ended early or kept an earlier policy; "" if neither."""
    watched = None if monitor is None else monitor.callback
    if watched is not None and watched.put_back is not None:
        return f"{watched.stopped_because}; the policy is that of step {watched.put_back}, the best one"
    if trainer.stop_reason:
        return f"{trainer.stop_reason}; the last valid policy was restored"
    if watched is not None and watched.stopped_because and trainer.state.global_step < trainer.state.max_steps:
        return watched.stopped_because
    return ""


def _before_and_after(monitor: Monitor, trainer: Any) -> PolicyComparison:
    """Compare the first measurement with that of the kept policy, which is measured now if it was not before."""
    taken, best = monitor.callback.measurements, monitor.callback.put_back
    kept = next((one for one in taken if one.step == best), taken[-1])
    unknown = trainer.stop_reason and best is None
    after = monitor.measure(trainer.state.global_step) if unknown else kept.samples
    return before_and_after(monitor.prompts, taken[0].samples, after, monitor.callback.names)


def _results(trainer: Any, result: Any, updates: Sequence[Update], ended: str) -> dict[str, Any]:
    """Metrics of the run and of its last update."""
    last = next((entry for entry in reversed(trainer.state.log_history) if "objective/scores" in entry), {})
    found = {**last, **result.metrics, "train_loss": result.training_loss, "ended": ended}
    found["updates"] = sum(update.made for update in updates)
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()
    }
    return {name: value for name, value in finite.items() if name not in ("step", "episode")}


def _configuration(settings: Sequence[Any]) -> Mapping[str, object]:
    """The settings that differ from their defaults."""
    found: dict[str, object] = {}
    for one in settings:
        for item in dataclasses.fields(one):
            if not item.init or item.name in ("hub_token", "resume_from_checkpoint"):
                continue
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            value = getattr(one, item.name)
            if value != default:
                found[item.name] = value
    return found
