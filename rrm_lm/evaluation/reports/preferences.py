"""The page about a reward model: its measures, its mistakes, and its training data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rrm_lm.evaluation.preferences.results import Evaluation, Measures, SetResult
from rrm_lm.evaluation.reports import figures
from rrm_lm.evaluation.reports.figures import Series
from rrm_lm.evaluation.reports.formats import percent
from rrm_lm.evaluation.reports.page import PageData, embed, render
from rrm_lm.evaluation.statistics.metrics import Estimate
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison
from rrm_lm.feedback.splits import SHOWN_PARTS, composition

MISTAKES = 10  # shown with their texts


@dataclass(frozen=True, kw_only=True)
class ReportData(PageData):
    """Data of the page; only the evaluation is required."""

    evaluation: Evaluation  # results of one model on one or more sets; its name is the default title
    log_history: Sequence[Mapping[str, Any]] = ()  # from Hugging Face's `trainer_state.json`
    # `LeakageReport.to_dict()` of the training set against the evaluation sets
    leakage: Mapping[str, Any] | None = None
    read_counts: Sequence[Mapping[str, Any]] = ()  # `ReadCounts.to_dict()` of all data read
    # by set name, the result of `describe`
    statistics: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def render_report(data: ReportData) -> str:
    panels = training_panels(data.log_history)
    return render(
        "reward_model.html.j2",
        data=data,
        title=data.title or data.evaluation.model,
        most_rows=figures.MOST_ROWS,
        headline=embed(figures.headline(data.evaluation), "headline", "Accuracy of the model and of the length rule"),
        sets=[_set_view(result, f"set-{i}") for i, result in enumerate(data.evaluation.sets, start=1)],
        critic=data.evaluation.details.get("critic"),
        curves=embed(figures.curves(panels, share=[ACCURACY]), "curves", "Training curves") if panels else "",
        files=[entry for counts in data.read_counts for entry in counts.get("files", ())],
        statistic_keys=list(dict.fromkeys(key for table in data.statistics.values() for key in table)),
    )


def _set_view(result: SetResult, anchor: str) -> dict[str, Any]:
    """The values of one set: figures, benchmark scores, and the most confident mistakes, one per prompt."""
    measures, scored = result.measures, result.scored
    wrong = sorted((one for one in scored if one.margin < 0), key=lambda one: (one.margin, one.index))
    worst = {one.comparison.prompt_id: one for one in reversed(wrong)}
    pictures = {
        "reliability": (figures.reliability(measures.calibration), "Reliability plot"),
        "margins": (figures.margins(scored), "Histogram of margins"),
        "length": (figures.reward_by_length(scored), "Reward against length of response"),
        "source": (figures.by_group(result.by_source), "Accuracy by source"),
    }
    if result.by_subset:
        pictures["subset"] = (figures.by_group(result.by_subset), "Accuracy by subset")
    if result.by_part:
        pictures["part"] = (figures.by_group(result.by_part), "Accuracy by the part of the gold reward that decides")
    return {
        "result": result,
        "anchor": anchor,
        "benchmarks": benchmark_rows(measures),
        "mistakes": sorted(worst.values(), key=lambda one: (one.margin, one.index))[:MISTAKES],
        "wrong": len(wrong),
        **{name: embed(figure, f"{anchor}-{name}", text) for name, (figure, text) in pictures.items()},
    }


def benchmark_rows(measures: Measures) -> list[tuple[str, Estimate]]:
    """Benchmark scores with their names; empty for other sets."""
    styles = measures.styles
    found = {
        **{f"RewardBench: {name}": estimate for name, estimate in measures.sections.items()},
        "Best of four, mean of subsets": measures.best_of_four,
        "RewardBench 2: Ties": measures.ties_subset,
        "RM-Bench: easy": styles and styles.easy,
        "RM-Bench: normal": styles and styles.normal,
        "RM-Bench: hard": styles and styles.hard,
        "RM-Bench: average": styles and styles.average,
    }
    return [(label, estimate) for label, estimate in found.items() if estimate is not None]


LOSS, ACCURACY = "Loss", "Accuracy"


def training_panels(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Series]]]:
    """The curves in a trainer's log: losses and their components, and accuracies."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {LOSS: {}, ACCURACY: {}}
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int | float):
            continue
        for key, value in entry.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
                continue
            words = re.split(r"[_/ ]+", key.lower())
            title = LOSS if "loss" in words else ACCURACY if "accuracy" in words else ""
            if title and words[0] != "train":  # the summary at the end of training is not a point of a curve
                rest = " ".join(word for word in words if word not in ("eval", "loss", "accuracy"))
                name = rest or ("total" if title == LOSS else "training batches")
                name = f"held-out {rest}".strip() if words[0] == "eval" else name
                steps, values = panels[title].setdefault(name, ([], []))
                steps.append(float(step))
                values.append(float(value))
    return [(title, dict(lines)) for title, lines in panels.items() if lines]


def describe(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Statistics of a set for the report's data table: counts, median lengths in characters, sources."""
    if not comparisons:
        return {"comparisons": 0}
    chosen, rejected = [len(c.chosen) for c in comparisons], [len(c.rejected) for c in comparisons]
    parts = composition(Feedback.of(comparisons))["comparisons"]
    return {
        "comparisons": len(comparisons),
        "prompts": len({c.prompt_id for c in comparisons}),
        "with more than one turn": sum(len(c.prompt) > 1 for c in comparisons),
        "median length of the prompt": int(np.median([sum(len(m.content) for m in c.prompt) for c in comparisons])),
        "median length of the chosen": int(np.median(chosen)),
        "median length of the rejected": int(np.median(rejected)),
        "the chosen is longer": percent(float(np.mean(np.greater(chosen, rejected)))),
        "with critiques": sum(bool(c.chosen_critiques or c.rejected_critiques) for c in comparisons),
        "critiques": sum(len(c.chosen_critiques) + len(c.rejected_critiques) for c in comparisons),
        "with graded margin": sum(c.margin is not None for c in comparisons),
        **{f"from {name or 'no source'}": count for name, count in parts.most_common(SHOWN_PARTS) if len(parts) > 1},
    }
