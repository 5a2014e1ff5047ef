"""Figures of a policy report: rewards by policy, best-of-n, over-optimization, length.

The reference is always amber and the first policy blue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rrm_lm.evaluation.policies.comparison import rewards_of
from rrm_lm.evaluation.policies.monitors import OverOptimisation
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports import plots
from rrm_lm.evaluation.reports.formats import axis_number, decimal
from rrm_lm.evaluation.reports.plots import ForestRow

REFERENCE, POLICY_COLORS = plots.BASELINE, (plots.ACCENT, plots.INK, plots.BAD, plots.MUTED)


def color_of(place: int) -> str:
    """The color of a policy by its index in a comparison; the reference has index 0."""
    return REFERENCE if place == 0 else POLICY_COLORS[(place - 1) % len(POLICY_COLORS)]


def reward_rows(comparison: PolicyComparison, measure: str) -> list[ForestRow]:
    """A row for each policy's mean reward, and one for the reference's best-of-n by the proxy."""
    rows = []
    for place, result in enumerate(comparison.results):
        if measure not in result.rewards:
            continue
        color = plots.MUTED if result.trivial else color_of(place)
        rows.append(ForestRow(result.name, result.rewards[measure], color, strong=place > 0 and not result.trivial))
        curve = result.best_of_n
        if place == 0 and curve is not None and measure == comparison.main:
            label = f"its best of {len(curve.kl)} by {comparison.proxy}"
            rows.append(ForestRow(label, curve.gold[-1], REFERENCE, strong=False))
    return rows


def headline(comparison: PolicyComparison, measure: str) -> Figure:
    """Mean reward of each policy with its 95% interval, and a line at the reference."""
    rows = reward_rows(comparison, measure)
    return plots.forest(rows, rows[0].estimate.value, label=f"mean {plots.short(measure)} reward", written=decimal)


def best_of_n(comparison: PolicyComparison) -> Figure:
    """For each policy, the main and the proxy reward of the best of n samples by the proxy."""
    curves = [
        (place, result.name, result.best_of_n)
        for place, result in enumerate(comparison.results)
        if result.best_of_n is not None and not result.trivial
    ]
    most = max(len(curve.kl) for _, _, curve in curves)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for axes, part, title in zip(panels, ("gold", "proxy"), (comparison.main, comparison.proxy), strict=True):
            for place, name, curve in curves:
                n, estimates = curve.n, getattr(curve, part)
                low, high = zip(*map(plots.finite_ends, estimates), strict=True)
                axes.fill_between(n, low, high, color=color_of(place), alpha=0.16, linewidth=0)
                axes.plot(n, [e.value for e in estimates], color=color_of(place), linewidth=1.8, markersize=3.5,
                          marker="o" if len(n) <= 16 else None, label=plots.short(name))  # fmt: skip
            axes.set_title(f"{plots.short(str(title))} reward")
            axes.set_xlabel(f"n: best of n by {plots.short(str(comparison.proxy))}")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator([2**i for i in range(int(math.log2(most)) + 1)]))
            axes.xaxis.set_major_formatter(FuncFormatter(axis_number))
            axes.xaxis.set_minor_locator(NullLocator())
            plots.number_axis(axes)
        if len(curves) > 1:
            panels[0].legend()

    return plots.draw((8.6, 3.1), paint)


def over_optimisation(tracks: Mapping[str, tuple[str, OverOptimisation]]) -> Figure:
    """Gold and proxy reward against the distance from the reference, with the fitted curves and their peaks. `tracks`
    has a color and a track by label; all tracks have the same rewards.
    """
    names = next(iter(tracks.values()))[1].names

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for axes, part, title in zip(panels, ("gold", "proxy"), names, strict=True):
            axes.set_title(f"{plots.short(title)} reward")
            axes.set_xlabel("distance from the reference: square root of KL")
            for label, (color, found) in tracks.items():
                _points(axes, found, part, color, label)
        for color, found in tracks.values():
            _curve(panels[0], found, color)
        for axes in panels:
            axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            plots.number_axis(axes)
        if len(tracks) > 1:
            panels[1].legend()

    return plots.draw((8.6, 3.5), paint)


def _points(axes: Axes, found: OverOptimisation, part: str, color: str, label: str) -> None:
    """The measured points with their intervals. Proxy points are connected; gold has the fitted curve."""
    pairs = [(point.distance, getattr(point, part)) for point in found.points if math.isfinite(point.distance)]
    pairs = [(distance, value) for distance, value in pairs if value is not None]
    if not pairs:
        return
    for distance, value in pairs:
        axes.plot([distance] * 2, plots.finite_ends(value), color=color, linewidth=3, alpha=0.22)
    distances, values = zip(*pairs, strict=True)
    axes.plot(distances, [value.value for value in values], color=color, marker="o", markersize=4.5, markeredgewidth=0,
              linewidth=1.2 if part == "proxy" else 0, alpha=0.9, label=label)  # fmt: skip


def _curve(axes: Axes, found: OverOptimisation, color: str) -> None:
    """The fitted curve, dashed beyond the measurements, and its peak."""
    fit = found.fit
    if fit is None:
        return
    farthest = max(point.distance for point in found.points if math.isfinite(point.distance))
    peak = fit.peak.value
    beyond = min(peak * 1.1, farthest * 1.5) if math.isfinite(peak) and peak > farthest else farthest
    for low, high, style in ((0.0, farthest, "-"), (farthest, beyond, (0, (4, 2)))):
        if high > low:
            x = np.linspace(low, high, 200)
            axes.plot(x, fit.at(x), color=color, linewidth=1.8, linestyle=style)
    if peak <= beyond:
        axes.plot([peak], [float(fit.at(peak))], "v", color=color, markersize=8)
        axes.axvline(peak, color=color, linewidth=1, linestyle=(0, (1, 3)))
        axes.annotate("peak", (peak, 0.02), (4, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      color=color, fontsize=9)  # fmt: skip


def reward_by_length(comparison: PolicyComparison, measure: str) -> Figure:
    """Reward against length for every sample, with each policy's median in bands of equal size."""
    models = [one for one in comparison.written if not one.trivial]
    most = max(1, plots.MOST_POINTS // len(models))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, one in enumerate(models):
            rewards = np.concatenate(rewards_of(one, measure))
            lengths = np.array([sample.tokens for group in one.samples for sample in group], dtype=float)
            lengths, rewards = lengths[~np.isnan(rewards)], rewards[~np.isnan(rewards)]
            if not rewards.size:
                continue
            shown = plots.spread_out(rewards.size, most)
            axes.plot(lengths[shown], rewards[shown], "D" if place == 0 else "o", color=color_of(place), markersize=3.5,
                      markeredgewidth=0, alpha=0.4)  # fmt: skip
            axes.plot(*plots.medians(lengths, rewards, 8), color=color_of(place), linewidth=2, marker="s", markersize=4,
                      label=plots.short(one.name))  # fmt: skip
        plots.label_by_length(axes, "tokens", f"{plots.short(measure)} reward")

    return plots.draw((8.6, 3.6), paint)
