"""The pictures of a policy report: rewards by policy, best of n, over-optimisation, length; styled as in `figures.py`.

Markers: the reference is amber, the first policy blue, whatever the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rrm_lm.evaluation.policies.comparison import rewards_of
from rrm_lm.evaluation.policies.monitors import OverOptimisation, Point
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports.figures import ACCENT, BAD, BASELINE, INK, MOST_POINTS, MUTED, ForestRow, draw, forest
from rrm_lm.evaluation.reports.policy_wording import decimal
from rrm_lm.evaluation.statistics.metrics import Estimate

REFERENCE, POLICY_COLORS = BASELINE, (ACCENT, INK, BAD, MUTED)
_LONGEST_NAME = 40


def color_of(place: int) -> str:
    """The colour of a policy by its place in a comparison; the reference has place 0."""
    return REFERENCE if place == 0 else POLICY_COLORS[(place - 1) % len(POLICY_COLORS)]


def short(name: str) -> str:
    """The end of a name that is too long for a picture: paths differ there."""
    return name if len(name) <= _LONGEST_NAME else "\N{HORIZONTAL ELLIPSIS}" + name[-_LONGEST_NAME + 1 :]


def number(value: float, _position: int | None = None) -> str:
    """A number on an axis or beside a mark, as short as it can be said, with a typographic minus sign."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


# ---- rewards by policy ----


def reward_rows(comparison: PolicyComparison, measure: str) -> list[ForestRow]:
    """A row for each policy's mean reward, and one for the best of the reference's samples by the proxy."""
    rows = []
    for place, result in enumerate(comparison.results):
        if measure not in result.rewards:
            continue
        color = MUTED if result.trivial else color_of(place)
        rows.append(ForestRow(result.name, result.rewards[measure], color, strong=place > 0 and not result.trivial))
        curve = result.best_of_n
        if place == 0 and curve is not None and measure == comparison.main:
            label = f"its best of {len(curve.kl)} by {comparison.proxy}"
            rows.append(ForestRow(label, curve.gold[-1], REFERENCE, strong=False))
    return rows


def headline(comparison: PolicyComparison, measure: str) -> Figure:
    """Mean reward of each policy with its 95% interval, and a line at the reference's."""
    rows = reward_rows(comparison, measure)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = min(_low(row.estimate) for row in rows), max(_high(row.estimate) for row in rows)
        pad = 0.08 * max(high - low, 1e-3)
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.axvline(rows[0].estimate.value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for y, row in enumerate(rows):
            size = 1.0 if row.strong else 0.62
            ends = [_low(row.estimate), _high(row.estimate)]
            axes.plot(ends, [y, y], color=row.color, linewidth=5.5 * size, alpha=0.32)
            axes.plot([row.estimate.value], [y], "o", color=row.color, markersize=9.5 * size)
        axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
        numbers = axes.secondary_yaxis("right")
        numbers.set_yticks(range(len(rows)), [decimal(row.estimate.value) for row in rows])
        for labels, bold in ((axes.get_yticklabels(), False), (numbers.get_yticklabels(), True)):
            for label, row in zip(labels, rows, strict=True):
                label.set_color(INK if row.strong else MUTED)
                label.set_fontweight("bold" if bold and row.strong else "normal")
        for spine in (axes.spines["left"], numbers.spines["right"]):
            spine.set_visible(False)
        for each in (axes, numbers):
            each.tick_params(axis="y", length=0, labelsize=10.5)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(number))
        axes.set_xlabel(f"mean {short(measure)} reward", labelpad=6)

    return draw((8.6, 0.95 + 0.44 * len(rows)), paint)


def win_rates(rows: Sequence[ForestRow]) -> Figure:
    """Win rates against the reference, with a line at 50%."""
    return draw((8.6, 0.85 + 0.44 * len(rows)), lambda figure: forest(figure.add_subplot(), rows))


def _low(estimate: Estimate) -> float:
    return estimate.low if math.isfinite(estimate.low) else estimate.value


def _high(estimate: Estimate) -> float:
    return estimate.high if math.isfinite(estimate.high) else estimate.value


# ---- best of n ----


def best_of_n(comparison: PolicyComparison) -> Figure:
    """The reward that the best of n by proxy is worth, and that the proxy says it has, for each policy."""
    curves = [
        (place, result.name, result.best_of_n)
        for place, result in enumerate(comparison.results)
        if result.best_of_n is not None and not result.trivial
    ]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        for axes, part, title in zip(panels, ("gold", "proxy"), (comparison.main, comparison.proxy), strict=True):
            for place, name, curve in curves:
                n, estimates = curve.n, getattr(curve, part)
                band = [_low(e) for e in estimates], [_high(e) for e in estimates]
                axes.fill_between(n, *band, color=color_of(place), alpha=0.16, linewidth=0)
                marker = "o" if len(n) <= 16 else None
                axes.plot(n, [e.value for e in estimates], color=color_of(place), linewidth=1.8, marker=marker,
                          markersize=3.5, label=short(name))  # fmt: skip
            axes.set_title(f"{short(str(title))} reward", loc="left", fontsize=10.5, color=INK)
            axes.set_xlabel(f"n: best of n by {short(str(comparison.proxy))}")
            axes.set_xscale("log")
            most = max(len(curve.kl) for _, _, curve in curves)
            axes.xaxis.set_major_locator(FixedLocator([2**i for i in range(int(math.log2(most)) + 1)]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            _plain_axes(axes)
        if len(curves) > 1:
            panels[0].legend(labelcolor=MUTED, fontsize=8.5)

    return draw((8.6, 3.1), paint)


def _plain_axes(axes: Axes) -> None:
    axes.tick_params(which="both", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(number))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


# ---- over-optimisation ----


def over_optimisation(tracks: Mapping[str, tuple[str, OverOptimisation]]) -> Figure:
    """Gold and proxy reward against the distance from the reference, with the fitted curves and their peaks.

    Args:
        tracks: By label: a colour, and what its track says. All are of the same rewards.
    """
    gold, proxy = next(iter(tracks.values()))[1].names

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axes, part, title in ((left, "gold", gold), (right, "proxy", proxy)):
            axes.set_title(f"{short(str(title))} reward", loc="left", fontsize=10.5, color=INK)
            axes.set_xlabel("distance from the reference: square root of KL")
            for label, (color, found) in tracks.items():
                _points(axes, found, part, color, label)
        for color, found in tracks.values():
            _curve(left, found, color)
        for axes in (left, right):
            axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            _plain_axes(axes)
        if len(tracks) > 1:
            right.legend(labelcolor=MUTED, fontsize=8.5)

    return draw((8.6, 3.5), paint)


def _points(axes: Axes, found: OverOptimisation, part: str, color: str, label: str) -> None:
    pairs = [(point, getattr(point, part)) for point in found.points]
    there = [(point, value) for point, value in pairs if value is not None and math.isfinite(point.distance)]
    if not there:
        return
    x = [point.distance for point, _ in there]
    for place, (_, value) in zip(x, there, strict=True):
        axes.plot([place] * 2, [_low(value), _high(value)], color=color, linewidth=3, alpha=0.22)
    connected = part == "proxy"
    axes.plot(x, [value.value for _, value in there], color=color, marker="o", markersize=4.5, markeredgewidth=0,
              linewidth=1.2 if connected else 0, alpha=0.9, label=label)  # fmt: skip


def _curve(axes: Axes, found: OverOptimisation, color: str) -> None:
    fit = found.fit
    if fit is None:
        return
    farthest = max(_distances(found.points))
    peak = fit.peak.value
    beyond = min(peak * 1.1, farthest * 1.5) if math.isfinite(peak) and peak > farthest else farthest
    for low, high, style in ((0.0, farthest, "-"), (farthest, beyond, (0, (4, 2)))):
        if high > low:
            x = np.linspace(low, high, 200)
            axes.plot(x, fit.at(x), color=color, linewidth=1.8, linestyle=style)
    if peak <= beyond:
        y = float(fit.at(peak))
        axes.plot([peak], [y], "v", color=color, markersize=8)
        axes.axvline(peak, color=color, linewidth=1, linestyle=(0, (1, 3)))
        axes.annotate("peak", (peak, 0.02), (4, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      color=color, fontsize=9)  # fmt: skip


def _distances(points: Sequence[Point]) -> list[float]:
    return [point.distance for point in points if math.isfinite(point.distance)]


# ---- length ----


def reward_by_length(comparison: PolicyComparison, measure: str) -> Figure:
    """Reward against length for every sample, with each policy's median in bands of equal size."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        models = [one for one in comparison.written if not one.trivial]
        share = max(1, MOST_POINTS // len(models))
        for place, one in enumerate(models):
            rewards = np.concatenate(rewards_of(one, measure))
            lengths = np.array([sample.tokens for group in one.samples for sample in group], dtype=float)
            lengths, rewards = lengths[~np.isnan(rewards)], rewards[~np.isnan(rewards)]
            if not rewards.size:
                continue
            shown = np.unique(np.linspace(0, rewards.size - 1, min(rewards.size, share)).astype(int))
            axes.plot(lengths[shown], rewards[shown], "D" if place == 0 else "o", color=color_of(place), markersize=3,
                      markeredgewidth=0, alpha=0.4, linestyle="none")  # fmt: skip
            bands = np.array_split(np.argsort(lengths, kind="stable"), max(1, min(8, rewards.size // 15)))
            middle = [[float(np.median(values[band])) for band in bands] for values in (lengths, rewards)]
            axes.plot(*middle, color=color_of(place), linewidth=2, marker="s", markersize=4, label=short(one.name))
        axes.set_xlabel("length of the response in tokens")
        axes.set_ylabel(f"{short(measure)} reward")
        _plain_axes(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, labelcolor=MUTED, fontsize=9)

    return draw((8.6, 3.6), paint)
