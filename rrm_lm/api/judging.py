"""Evaluate a reward model and write the results: files, a report and a table."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward
from rrm_lm.evaluation.preferences.outputs import plain_text, write_evaluation
from rrm_lm.evaluation.preferences.results import Evaluation, SetResult
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, evaluate_preferences, reader_drops
from rrm_lm.evaluation.reports.formats import BASELINE_NAMES, fixed, percent, percent_interval, points, points_interval
from rrm_lm.evaluation.reports.model_card import Card, model_card
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.preferences import ReportData, describe, render_report
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.splits import LeakageReport
from rrm_lm.storage import write_text
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

_WIDTH = 120  # table width if stdout is not a terminal


def judge(
    scorer: ResponseScorer, sets: Mapping[str, Feedback], details: Mapping[str, object] | None = None
) -> Evaluation:
    """Score each set. In a distributed run every process calls it, and each gets the whole result. `details` are more
    fields for the results. If the reward has criteria, the results say what each of them adds.
    """
    results = [
        evaluate_preferences(scorer, feedback.comparisons, name=name, dropped=reader_drops(feedback.counts))
        for name, feedback in sets.items()
    ]
    criteria = getattr(scorer, "criteria", None)
    if criteria is not None:
        explained = {result.name: _explained(criteria, result, hasattr(scorer, "model")) for result in results}
        details = {**(details or {}), "criteria": explained}
    return Evaluation(scorer.name, tuple(results), dict(details or {}))


def _explained(criteria: CriteriaReward, result: SetResult, has_lora: bool) -> list[dict[str, Any]]:
    """What each criterion adds to the scored pairs of a set, and the LoRA reward, with its accuracy."""
    parts, added = criteria.explain([one.comparison for one in result.scored])
    left = np.array([one.margin for one in result.scored]) - added
    accuracy = metrics.share(metrics.correctness(left), [one.comparison.prompt_id for one in result.scored])
    rest = {"statement": "the LoRA reward", "lead": float(left.mean()), "accuracy": asdict(accuracy)}
    return [*parts, rest] if has_lora else parts


def with_comparisons(sets: dict[str, Feedback]) -> dict[str, Feedback]:
    """Return the sets unchanged. Raises DataError if a set has no comparisons."""
    empty = [name for name, feedback in sets.items() if not feedback.comparisons]
    if empty:
        raise DataError(
            "There are no comparisons to judge a model by",
            where=", ".join(empty),
            expected="pairs of a chosen and a rejected response, or several ratings of one prompt",
            remedy="name another set, or say which column is which with --columns",
        )
    return sets


def write_judgement(
    evaluation: Evaluation,
    sets: Mapping[str, Feedback],
    folder: Path,
    *,
    chat: ChatFormat | None,
    location: str,
    train: Feedback | None = None,
    leak: LeakageReport | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    configuration: Mapping[str, object] | None = None,
    base_model: str = "",
) -> None:
    """Write results.json, scores.jsonl, RewardBench's files, a model card and report.html, and print the numbers.

    `sets` are the evaluated sets by name, and `chat` is the model's chat format, for RewardBench's texts. `location` is
    the path or name that the model is loaded from, and `base_model` the backbone's name, for an adapter that was
    trained here. `leak` is the leakage check of the sets against the training feedback. The report shows the training
    log and the `configuration`.
    """
    settings = dict(configuration or {})
    render = plain_text if chat is None else chat.transcript
    write_evaluation(evaluation, folder, render=render, tokenizer=base_model or None)
    statistics = {name: describe(feedback.comparisons) for name, feedback in sets.items()}
    if train is not None and train.comparisons:
        statistics = {"training": describe(train.comparisons), **statistics}
    counts = [feedback.counts for feedback in ([train] if train is not None else []) + list(sets.values())]
    report = ReportData(
        evaluation=evaluation,
        log_history=log_history,
        leakage=leak.to_dict() if leak is not None else None,
        read_counts=[count.to_dict() for count in counts if count.files],
        statistics=statistics,
        configuration=settings,
        environment=environment(),
    )
    write_text(folder / "report.html", render_report(report))
    names = settings.get("dataset_name")
    card = Card(
        kind="adapter" if base_model else "evaluated",
        location=location,
        base_model=base_model,
        datasets=[str(name) for name in names] if isinstance(names, list) else [],
        sources=_sources(sets),
        training=settings if base_model else {},
        leakage=leak.summary() if leak is not None else "",
    )
    write_text(folder / "README.md", model_card(evaluation, card))
    if base_model and (merged := folder / "merged").is_dir():
        merged_card = replace(card, kind="merged", location=str(Path(location, "merged")))
        write_text(merged / "README.md", model_card(evaluation, merged_card))
    show(evaluation)
    logger.info("report: %s", folder / "report.html")


def _sources(sets: Mapping[str, Feedback]) -> dict[str, tuple[str, str]]:
    """Name and commit on the Hub of each set that is read from one Hub set."""
    read = {name: feedback.counts.files for name, feedback in sets.items()}
    known = {name: files[0] for name, files in read.items() if len(files) == 1 and files[0].revision}
    return {name: (one.file.partition("[")[0], one.revision) for name, one in known.items()}


def show(evaluation: Evaluation) -> None:
    """Print the numbers as a table, then one sentence per set."""
    table = Table(title=f"{evaluation.model} on held-out preferences", title_justify="left")
    for column in ("set", "accuracy (95% interval)", "longer response", "ECE", "Brier", "scored", "ties"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for result in evaluation.sets:
        summary = result.overall.to_dict()
        measures = result.measures
        table.add_row(
            result.name,
            f"{percent(measures.accuracy.value)} ({percent_interval(measures.accuracy)})",
            percent(measures.longer_accuracy.value),
            fixed(measures.calibration.ece, 3),
            fixed(measures.brier.value, 3),
            f"{summary['n_scored']} of {summary['n_given']}",
            str(summary["ties"]),
        )
    console = table_console()
    console.print(table)
    for result in evaluation.sets:
        console.print(sentence("accuracy_verdict", result, len(evaluation.sets) > 1), soft_wrap=True)
        for name, part in result.by_part.items():
            if part.measures is not None:
                accuracy = part.measures.accuracy
                found = f"{percent(accuracy.value)} ({percent_interval(accuracy)}) of {part.n_scored}"
                console.print(f"  decided by {name}: {found}", soft_wrap=True)
        followed: Any = evaluation.details.get("follow_through", {})
        if result.name in followed:
            console.print(sentence("follow_through", followed[result.name]), soft_wrap=True)
        if result.baselines:
            console.print(_baselines_table(result))
            console.print(sentence("baselines_verdict", result.baselines), soft_wrap=True)
            console.print(sentence("baselines_fitted", result.baselines), soft_wrap=True)


def table_console() -> Console:
    """Standard output, for tables: as wide as the terminal, or `_WIDTH` without one."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)


def _baselines_table(result: SetResult) -> Table:
    table = Table("baseline", title=f"baselines on {result.name}", title_justify="left")
    for column in ("accuracy (95% interval)", "model minus baseline, points"):
        table.add_column(column, justify="right")
    for name, one in result.baselines.items():
        accuracy = f"{percent(one.accuracy.value)} ({percent_interval(one.accuracy)})"
        table.add_row(BASELINE_NAMES[name], accuracy, f"{points(one.lead.value)} ({points_interval(one.lead)})")
    return table


def environment() -> dict[str, object]:
    """Versions and hardware, for the report."""
    import torch

    names = ("rrm_lm", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "hardware": hardware}
