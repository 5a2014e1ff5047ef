"""Results of policies: a table in the terminal; of `rrm-lm policy` also a JSON file and a report."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rrm_lm.api.judging import environment, table_console
from rrm_lm.api.output_run import changed_settings
from rrm_lm.api.policy.monitor import Monitor
from rrm_lm.api.policy.trainers import Training
from rrm_lm.evaluation.policies.results import PART, PolicyComparison
from rrm_lm.evaluation.reports.formats import decimal, decimal_cell, decimal_interval, level_cell, percent_cell
from rrm_lm.evaluation.reports.history import Update, updates_of
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.policies import answers
from rrm_lm.evaluation.reports.training import TrainingReportData, before_and_after, render_training_report
from rrm_lm.storage import write_text
from rrm_lm.training.arguments import TOKENS

logger = logging.getLogger(__name__)

_ANSWERS = 3  # prompts whose answers are printed


def print_comparison(comparison: PolicyComparison) -> None:
    """Print some answers, the numbers as tables, and a one-sentence verdict per policy."""
    measure = comparison.measure
    table = Table(title=f"{len(comparison.prompts)} prompts", title_justify="left")
    rewards = [] if measure is None else [f"mean {measure}", "difference", "wins"]
    for column in ("policy", *rewards, "KL", "tokens", "ended"):
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for result in comparison.results:
        cells = []
        if measure is not None:
            against = result.against.get(measure)
            cells = [
                decimal_cell(result.rewards.get(measure)),
                decimal_cell(against and against.difference, sign=True),
                percent_cell(against and against.win_rate),
            ]
        cells.append(decimal_cell(result.kl))
        cells += [(level_cell(name, result.drift[name].level)[0], "") for name in ("tokens", "finished")]
        table.add_row(result.name, *("\n".join(filter(None, cell)) for cell in cells))
    console = table_console()
    for shown in answers(comparison, _ANSWERS):
        console.print(f"\n{shown['prompt'][-1].content}", soft_wrap=True)
        for side in shown["sides"]:
            console.print(f"  {side['policy']}: {' '.join(side['sample'].response.split())}", soft_wrap=True)
    console.print()
    console.print(table)
    if comparison.reference.parts:
        console.print(_parts(comparison))
    for result in comparison.policies:
        console.print(sentence("policy_verdict", comparison, result), soft_wrap=True)
        for doubt in comparison.doubts(result):
            console.print(f"  - {sentence('doubt', doubt)}", soft_wrap=True)


def _parts(comparison: PolicyComparison) -> Table:
    """Each part of the gold reward by policy, at temperature 0 in brackets; below, its change from the reference."""
    brackets = "; in brackets: at temperature 0" if comparison.reference.greedy else ""
    table = Table(title=f"the parts of gold, and their change{brackets}", title_justify="left")
    table.add_column("policy", overflow="fold")
    for part in comparison.reference.parts:
        table.add_column(part, justify="right")
    for result in comparison.results:
        cells = []
        for name, part in result.parts.items():
            greedy = result.greedy.get(PART + name)
            brackets = f" [{decimal(greedy.level.value)}]" if greedy else ""
            change = (
                f"\n{decimal(part.change.value, sign=True)} ({decimal_interval(part.change, sign=True)})"
                if part.change
                else ""
            )
            cells.append(f"{decimal(part.level.value)}{brackets}{change}")
        table.add_row(result.name, *cells)
    return table


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
        configuration=changed_settings(*settings),
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
    found |= {name: getattr(trainer.args, name) for name in TOKENS if hasattr(trainer.args, name)}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()
    }
    return {name: value for name, value in finite.items() if name not in ("step", "episode")}
