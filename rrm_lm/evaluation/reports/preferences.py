"""One self-contained page about a reward model: how good it is, where it is wrong, and what it was made from.

Everything is inside the file (styles, pictures, texts), nothing is loaded from elsewhere, and every text that a
person or a model wrote is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rrm_lm import __version__
from rrm_lm.evaluation.preferences.results import Evaluation, Measures, SetResult
from rrm_lm.evaluation.reports import figures
from rrm_lm.evaluation.reports.templating import environment
from rrm_lm.evaluation.reports.wording import calibration_note, glossary, length_note, percent, tiles, verdict
from rrm_lm.evaluation.statistics.metrics import Estimate
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison
from rrm_lm.feedback.splits import SHOWN_PARTS, composition
from rrm_lm.storage import now, write_text

MISTAKES = 10  # shown with their texts
FOLD = 700  # characters beyond which a text is folded away
PREVIEW = 420  # characters of a folded text that stay in sight


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report is made from; only the evaluation is needed.

    Attributes:
        evaluation: Results of one model on one or more sets.
        title: The page's heading; the model's name if empty.
        log_history: The list of that name in Hugging Face's `trainer_state.json`.
        leakage: `LeakageReport.to_dict()` of the training set against the evaluation sets.
        read_counts: `ReadCounts.to_dict()` of everything that was read.
        statistics: By set name, what `describe` gives.
        configuration, environment: Tables of settings and of versions and hardware.
        created: When; now, in UTC, if empty.
    """

    evaluation: Evaluation
    title: str = ""
    log_history: Sequence[Mapping[str, Any]] = ()
    leakage: Mapping[str, Any] | None = None
    read_counts: Sequence[Mapping[str, Any]] = ()
    statistics: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    configuration: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    created: str = field(default_factory=now)
    version: str = __version__


def write_report(data: ReportData, path: Path) -> None:
    """Write the page to `path` in one step."""
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    templates = environment()
    css = templates.get_template("report.css").render(
        light=figures.css_variables(dark=False), dark=figures.css_variables(dark=True)
    )
    views = [_set_view(result, f"set-{i}") for i, result in enumerate(data.evaluation.sets, start=1)]
    panels, shares = training_panels(data.log_history)
    return templates.get_template("report.html.j2").render(
        data=data,
        title=data.title or data.evaluation.model,
        css=Markup(css),
        fold=FOLD,
        preview=PREVIEW,
        most_rows=figures.MOST_ROWS,
        verdicts=[verdict(result, several=len(views) > 1) for result in data.evaluation.sets],
        headline=_svg(
            figures.headline(data.evaluation),
            "headline",
            "Accuracy of the model on each set, with its interval, against always picking by length and a coin flip",
        ),
        sets=views,
        contents=_contents(data, views, bool(panels)),
        critic=data.evaluation.details.get("critic"),
        curves=_svg(figures.curves(panels, share=shares), "curves", "Training curves") if panels else "",
        curves_note="Losses are those of the training batches unless they say held-out.",
        leakage=leakage_view(data.leakage) if data.leakage is not None else None,
        files=[_file_view(entry) for counts in data.read_counts for entry in counts.get("files", ())],
        statistic_keys=list(dict.fromkeys(key for table in data.statistics.values() for key in table)),
        glossary=glossary(data.evaluation),
    )


def _svg(figure: Any, name: str, description: str) -> Markup:
    return Markup(figures.inline_svg(figure, name, description))


# ---- parts of the page ----


def _set_view(result: SetResult, anchor: str) -> dict[str, Any]:
    measures, scored = result.measures, result.scored
    wrong = sorted((e for e in scored if e.margin < 0), key=lambda e: (e.margin, e.index))
    worst = {e.comparison.prompt_id: e for e in reversed(wrong)}  # one for each prompt, or one prompt may fill the list
    return {
        "result": result,
        "anchor": anchor,
        "tiles": tiles(result),
        "reliability": _svg(figures.reliability(measures.calibration), f"{anchor}-reliability", "Reliability plot"),
        "calibration_note": calibration_note(measures),
        "margins": _svg(figures.margins(scored), f"{anchor}-margins", "Histogram of margins"),
        "length": _svg(figures.reward_by_length(scored), f"{anchor}-length", "Reward against length of response"),
        "length_note": length_note(measures),
        "by_source": _svg(figures.by_group(result.by_source), f"{anchor}-source", "Accuracy by source"),
        "by_subset": _svg(figures.by_group(result.by_subset), f"{anchor}-subset", "Accuracy by subset")
        if result.by_subset
        else "",
        "benchmarks": benchmark_rows(measures),
        "mistakes": sorted(worst.values(), key=lambda e: (e.margin, e.index))[:MISTAKES],
        "wrong": len(wrong),
    }


def benchmark_rows(measures: Measures) -> list[tuple[str, Estimate]]:
    """The scores that benchmarks define for themselves, with their names; none for a plain set."""
    rows = [(f"RewardBench: {name}", estimate) for name, estimate in measures.sections.items()]
    styles = measures.styles
    rows += [
        (label, estimate)
        for label, estimate in (
            ("Best of four", measures.best_of_four),
            ("RewardBench 2: Ties", measures.ties_subset),
            ("RM-Bench: easy", styles and styles.easy),
            ("RM-Bench: normal", styles and styles.normal),
            ("RM-Bench: hard", styles and styles.hard),
        )
        if estimate is not None
    ]
    return rows


def _contents(data: ReportData, views: Sequence[Mapping[str, Any]], trained: bool) -> list[tuple[str, str]]:
    several = len(views) > 1
    entries: list[tuple[str, str]] = []
    for view in views:
        name = view["result"].name
        entries.append((view["anchor"], name if several else "Held-out preferences"))
        entries.append((f"{view['anchor']}-mistakes", f"{name}: mistakes" if several else "Mistakes"))
    if data.evaluation.details.get("critic"):
        entries.append(("critic", "The critic"))
    if trained:
        entries.append(("training", "Training"))
    if data.leakage is not None or data.read_counts or data.statistics:
        entries.append(("data", "Data"))
    if data.configuration or data.environment:
        entries.append(("settings", "Settings"))
    return [*entries, ("glossary", "Glossary")]


Lines = dict[str, tuple[list[float], list[float]]]


def training_panels(history: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, Lines]], list[str]]:
    """What to plot of a trainer's log: its losses and their parts, and its accuracies; and which panels hold shares."""
    losses: Lines = {}
    accuracies: Lines = {}
    for entry in history:
        step = entry.get("step")
        if not isinstance(step, int | float):
            continue
        for key, value in entry.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
                continue
            words = re.split(r"[_/ ]+", key.lower())
            lines = losses if "loss" in words else accuracies if "accuracy" in words else None
            if lines is not None and "train" not in words[:1]:
                steps, values = lines.setdefault(_line_name(words), ([], []))
                steps.append(float(step))
                values.append(float(value))
    panels = [(title, lines) for title, lines in (("Loss", losses), ("Accuracy", accuracies)) if lines]
    return panels, ["Accuracy"]


def _line_name(words: Sequence[str]) -> str:
    held_out = words[0] == "eval"
    rest = [word for word in words if word not in ("eval", "loss", "accuracy")]
    name = " ".join(rest)
    if held_out:
        return f"held-out {name}".strip()
    return name or ("total" if "loss" in words else "training batches")


def _file_view(entry: Mapping[str, Any]) -> dict[str, str]:
    remarks = [f"{reason}: {tally['count']}" for part in ("dropped", "notes") for reason, tally in entry[part].items()]
    made = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in entry["made"].items())
    return {
        "file": str(entry["file"]),
        "format": str(entry["format"]),
        "rows": f"{entry['rows']:,}",
        "rows_used": f"{entry['rows_used']:,}",
        "made": made or "nothing",
        "remarks": "; ".join(remarks),
    }


OVERLAPS = {
    "openings": "first user turns that are the same",
    "prompts_exact": "whole prompts that are the same",
    "prompts_near": "whole prompts that are nearly the same",
    "responses_exact": "responses that are the same",
    "responses_near": "responses that are nearly the same",
}


def leakage_view(leakage: Mapping[str, Any]) -> dict[str, Any]:
    """The leakage check (`LeakageReport.to_dict()`) as a sentence, a table of its counts, and examples."""
    touched, records = leakage["heldout_touched"], leakage["heldout_records"]
    how = f"word for word or nearly (three-word shingles, Jaccard index from {leakage['threshold']:g})"
    if touched:
        sentence = (
            f"{touched:,} of {records:,} held-out records have a prompt or a response that is also in the training "
            f"set, {how}. The accuracy may be too high."
        )
    else:
        sentence = f"None of the {records:,} held-out records has a prompt or response of the training set, {how}."
    return {
        "tone": "bad" if touched else "good",
        "sentence": sentence,
        "table": {text: f"{leakage[key]['count']:,} of {leakage[key]['of']:,}" for key, text in OVERLAPS.items()},
        "examples": [
            {"what": text, **example} for key, text in OVERLAPS.items() for example in leakage[key]["examples"]
        ],
    }


def describe(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """What a set holds, for the report's table of data: counts, median lengths in characters, sources."""
    if not comparisons:
        return {"comparisons": 0}
    chosen = [len(c.chosen) for c in comparisons]
    rejected = [len(c.rejected) for c in comparisons]
    critiques = [text for c in comparisons for text in c.chosen_critiques + c.rejected_critiques]
    parts = composition(Feedback.of(comparisons))["comparisons"]
    return {
        "comparisons": len(comparisons),
        "prompts": len({c.prompt_id for c in comparisons}),
        "with more than one turn": sum(len(c.prompt) > 1 for c in comparisons),
        "median length of the prompt": int(np.median([sum(len(m.content) for m in c.prompt) for c in comparisons])),
        "median length of the chosen": int(np.median(chosen)),
        "median length of the rejected": int(np.median(rejected)),
        "the chosen is longer": percent(float(np.mean([a > b for a, b in zip(chosen, rejected, strict=True)]))),
        "with critiques": sum(bool(c.chosen_critiques or c.rejected_critiques) for c in comparisons),
        "critiques": len(critiques),
        "with graded margin": sum(c.margin is not None for c in comparisons),
        **{f"from {name or 'no source'}": count for name, count in parts.most_common(SHOWN_PARTS) if len(parts) > 1},
    }
