"""Figures of a reward model's report, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rrm_lm.evaluation.preferences.results import Evaluation, ScoredComparison, Summary, distinct_responses
from rrm_lm.evaluation.reports import plots
from rrm_lm.evaluation.reports.formats import axis_number, axis_percent
from rrm_lm.evaluation.reports.plots import ForestRow
from rrm_lm.evaluation.statistics.metrics import Calibration, Estimate

MOST_ROWS = 40  # in a plot by source or subset; the table has all

Series = tuple[Sequence[float], Sequence[float]]  # steps and values of a curve


def headline_rows(evaluation: Evaluation) -> list[ForestRow]:
    """For each set, a row for the model and one for the better length rule."""
    rows = []
    several = len(evaluation.sets) > 1
    for result in evaluation.sets:
        rule, value, _ = result.measures.length_rule
        longer = result.measures.longer_accuracy
        if rule == "shorter":
            longer = Estimate(value, 1 - longer.high, 1 - longer.low, longer.n, longer.clusters)
        rows.append(ForestRow(result.name if several else "this reward model", result.measures.accuracy, below=0.8))
        rows.append(ForestRow(f"always the {rule} response", longer, plots.BASELINE, strong=False, below=1.5))
    return rows


def headline(evaluation: Evaluation) -> Figure:
    """Accuracy on each set against the length rule and chance, with 95% intervals."""
    label = "accuracy on held-out comparisons"
    return plots.forest(headline_rows(evaluation), 0.5, note="chance", label=label, height=0.46)


def by_group(groups: Mapping[str, Summary]) -> Figure:
    """Accuracy of each source or subset with its interval. The label ends with the number of comparisons."""
    rows = [
        ForestRow(f"{name or 'unnamed'}  ({summary.n_scored})", summary.measures.accuracy, strong=False)
        for name, summary in groups.items()
        if summary.measures is not None
    ][:MOST_ROWS]
    return plots.forest(rows, 0.5, note="chance", height=0.3)


def reliability(calibration: Calibration) -> Figure:
    """Accuracy against confidence. A calibrated model is on the diagonal."""

    def paint(figure: Figure) -> None:
        axes, bins, blue = figure.add_subplot(), calibration.bins, plots.ACCENT
        axes.plot([0.5, 1], [0.5, 1], color=plots.MUTED, linewidth=1, linestyle=plots.DASHED)
        for row in bins:
            axes.plot([row.confidence] * 2, [row.accuracy.low, row.accuracy.high], color=blue, linewidth=4, alpha=0.3)
        confidences, shares = [row.confidence for row in bins], [row.accuracy.value for row in bins]
        axes.plot(confidences, shares, color=blue, linewidth=1.4, marker="o", markersize=6.5)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(min([0.5, *(row.accuracy.low for row in bins)]) - 0.02, 1.02)
        _annotate(axes, 0.98, 0.03, "dashed: perfectly calibrated", plots.MUTED)
        axes.set_xlabel("confidence in its pick")
        axes.set_ylabel("share of picks that were right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(axis_percent))

    return plots.draw((4.2, 3.7), paint)


def margins(scored: Sequence[ScoredComparison]) -> Figure:
    """The distribution of margins. Right of zero, the model agrees with the overseer."""
    values = np.array([one.margin for one in scored])
    reach = float(np.quantile(np.abs(values), 0.995)) or 1.0
    edges = np.linspace(-reach, reach, 2 * 15 + 1)  # an edge at zero, so that no bar mixes right and wrong
    heights, _ = np.histogram(np.clip(values, -reach, reach), edges)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        colors = [plots.BAD if edge < 0 else plots.ACCENT for edge in edges[:-1]]
        width = edges[1] - edges[0]
        axes.bar((edges[:-1] + edges[1:]) / 2, heights, width=0.86 * width, color=colors, alpha=0.85, linewidth=0)
        axes.axvline(0, color=plots.MUTED, linewidth=1, linestyle=plots.DASHED)
        axes.set_ylim(top=1.12 * max(heights))  # leave space for text above the bars
        _annotate(axes, 0.02, 0.95, "disagrees", plots.BAD)
        _annotate(axes, 0.98, 0.95, "agrees", plots.ACCENT)
        axes.set_xlabel("margin: reward of chosen minus reward of rejected")
        axes.set_ylabel("comparisons")
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_formatter(FuncFormatter(axis_number))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    return plots.draw((4.2, 3.7), paint)


def _annotate(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    side = "left" if x < 0.5 else "right"
    axes.annotate(text, (x, y), xycoords="axes fraction", color=color, fontsize=9, ha=side)


def reward_by_length(scored: Sequence[ScoredComparison]) -> Figure:
    """Reward against length for every response, chosen and rejected, with the median in bands of equal size."""
    chosen = {(one.comparison.prompt, one.comparison.chosen) for one in scored}
    responses = distinct_responses(scored)
    lengths = np.array([len(one.text) for one in responses], dtype=float)
    rewards = np.array([one.reward for one in responses])
    won = np.array([(one.comparison.prompt, one.text) in chosen for one in responses])
    shown = plots.spread_out(len(responses), plots.MOST_POINTS)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        kinds = ((won, plots.ACCENT, "o", "chosen"), (~won, plots.BASELINE, "D", "rejected"))
        for which, color, marker, label in kinds:
            here = shown[which[shown]]
            axes.plot(lengths[here], rewards[here], marker, color=color, markersize=3.5, markeredgewidth=0, alpha=0.5,
                      label=label)  # fmt: skip
        x, y = plots.medians(lengths, rewards, 12)
        if len(x) > 1:
            axes.plot(x, y, color=plots.INK, linewidth=2, label="median")
        if lengths.min() > 0 and lengths.max() > 8 * lengths.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
        plots.label_by_length(axes, "characters", "reward")

    return plots.draw((8.6, 3.6), paint)


def curves(
    panels: Sequence[tuple[str, Mapping[str, Series]]],
    *,
    share: Sequence[str] = (),
    whole: Sequence[str] = (),
    unit: str = "step",
) -> Figure:
    """Training curves side by side.

    A panel is a title, and curves by name. `share` and `whole` hold the titles of panels shown as percentages, and over
    the full range from 0 to 100%.
    """
    colors = (plots.ACCENT, plots.BASELINE, plots.BAD, plots.MUTED, plots.INK)

    def paint(figure: Figure) -> None:
        for place, (title, lines) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), place)
            for i, (name, (steps, values)) in enumerate(lines.items()):
                color, marker = colors[i % len(colors)], "o" if len(steps) <= 25 else None
                if len(steps) > 60:  # one point per batch: the mean over a centered window, over the faint raw values
                    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
                    half = max(1, len(values) // 60)
                    values = [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
                axes.plot(steps, values, color=color, linewidth=1.8, label=name, marker=marker, markersize=3.5)
            axes.set_title(title, pad=22 if len(lines) > 1 else None)
            axes.set_xlabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
            plots.number_axis(axes)
            if title in share:
                axes.yaxis.set_major_formatter(FuncFormatter(axis_percent))
            if title in whole:
                axes.set_ylim(-0.04, 1.04)
            if len(lines) > 1:
                axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=4)

    return plots.draw((8.6, 3.1), paint)
