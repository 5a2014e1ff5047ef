"""The pictures of a report, as SVG that follows the page's colours, and the headline picture as a file of its own.

Pictures are drawn with a few marker colours, which are then replaced by CSS variables: one SVG serves light and dark
pages and print. Text stays text, so that it can be searched and is set in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rrm_lm.evaluation.preferences.results import Evaluation, ScoredComparison, Summary, distinct_responses
from rrm_lm.evaluation.statistics.metrics import Calibration, Estimate
from rrm_lm.storage import staged_file, write_text

# Marker colours for drawing, and what they stand for on a light and on a dark page.
INK, MUTED, FAINT, ACCENT, BASELINE, BAD, SURFACE = (f"#0{n}0{n}0{n}" for n in range(1, 8))
PALETTE: Mapping[str, tuple[str, str, str]] = {
    INK: ("ink", "#14171f", "#eceef2"),
    MUTED: ("muted", "#5b6372", "#a0a8b6"),
    FAINT: ("faint", "#e3e6eb", "#2e333d"),
    ACCENT: ("accent", "#2b59c3", "#86a8ff"),
    BASELINE: ("baseline", "#b06f10", "#e3ab55"),
    BAD: ("bad", "#b93a32", "#f08a80"),
    SURFACE: ("surface", "#ffffff", "#15181e"),
}
MOST_POINTS = 1500  # in a scatter plot: more would make the page heavy and show no more
MOST_ROWS = 40  # in a plot by source or subset: the table has them all

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in the name of a set is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A line of a forest plot: a label, an estimate, and the colour and size of its mark."""

    label: str
    estimate: Estimate
    color: str = ACCENT
    strong: bool = True
    below: float = 1.0  # distance to the next row


def percent(value: float, _position: int | None = None) -> str:
    """An axis label: 0.7 as 70%."""
    return f"{100 * value:.0f}%"


def css_variables(dark: bool) -> str:
    """The palette as CSS declarations."""
    return "; ".join(f"--{name}: {night if dark else day}" for name, day, night in PALETTE.values())


# ---- drawing ----


def draw(size: tuple[float, float], paint: Callable[[Figure], None]) -> Figure:
    """A figure of `size` inches, painted in the house style."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
    return figure


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page: no external reference, colours as CSS variables.

    Args:
        figure: From `draw`.
        name: Prefix that keeps ids apart from those of other pictures on the page; letters, digits and dashes.
        description: What the picture shows, for people who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    # The size comes from the page; the view box keeps the proportions.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    for color, (variable, _, _) in PALETTE.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.strip()


def forest(axes: Axes, rows: Sequence[ForestRow]) -> None:
    """Paint accuracies with their intervals as rows, from the top, with a line at 50%."""
    places = np.cumsum([0.0, *(row.below for row in rows[:-1])]).tolist()
    low = min([0.5, *(row.estimate.low for row in rows)])
    high = max(row.estimate.high for row in rows)
    pad = 0.06 * max(high - low, 0.1)
    axes.set_xlim(max(0.0, low - pad), min(1.0, high + pad) + 0.2 * pad)
    axes.set_ylim(places[-1] + 0.55, -0.95)
    axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate("coin flip", (0.5, -0.88), (5, 0), textcoords="offset points", color=MUTED, fontsize=9, va="center")
    for y, row in zip(places, rows, strict=True):
        weight = 1.0 if row.strong else 0.62
        axes.plot([row.estimate.low, row.estimate.high], [y, y], color=row.color, linewidth=5.5 * weight, alpha=0.32)
        axes.plot([row.estimate.value], [y], "o", color=row.color, markersize=9.5 * weight)
    axes.set_yticks(places, [_short(row.label) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row.strong else MUTED)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(places, [f"{100 * row.estimate.value:.1f}%" for row in rows])
    for label, row in zip(numbers.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row.strong else MUTED)
        label.set_fontweight("bold" if row.strong else "normal")
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    numbers.spines["right"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    numbers.tick_params(axis="y", length=0, labelsize=10.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.tick_params(axis="x", length=0)


def _short(label: str, most: int = 44) -> str:
    """The label, or its end if it is too long to leave room for a picture: paths differ at the end."""
    return label if len(label) <= most else "\N{HORIZONTAL ELLIPSIS}" + label[-most + 1 :]


def headline_rows(evaluation: Evaluation) -> list[ForestRow]:
    """For each set: the model, and the rule of thumb it has to beat."""
    rows = []
    several = len(evaluation.sets) > 1
    for result in evaluation.sets:
        rule, value, _ = result.measures.length_rule
        longer = result.measures.longer_accuracy
        if rule == "shorter":
            longer = Estimate(value, 1 - longer.high, 1 - longer.low, longer.n, longer.clusters)
        rows.append(ForestRow(result.name if several else "this reward model", result.measures.accuracy, below=0.8))
        rows.append(ForestRow(f"always the {rule} response", longer, BASELINE, strong=False, below=1.5))
    return rows


def headline(evaluation: Evaluation, label: str = "") -> Figure:
    """Accuracy of the model on each set against the length rule and a coin flip, with 95% intervals."""
    rows = headline_rows(evaluation)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        forest(axes, rows)
        axes.set_xlabel(label, labelpad=6)

    return draw((8.6, (1.1 if label else 0.85) + 0.46 * len(rows)), paint)


def headline_figure(evaluation: Evaluation, path: Path) -> None:
    """Write the headline picture for a README.

    Args:
        evaluation: The results.
        path: Ends in `.svg` (follows the reader's light or dark setting) or `.png` (white, 200 dots per inch).

    Raises:
        ValueError: if the ending is another one.
    """
    figure = headline(evaluation, "accuracy on held-out comparisons, with 95% intervals")
    if path.suffix == ".svg":
        svg = inline_svg(figure, "headline", "Accuracy on held-out preferences with 95% intervals")
        style = (
            f"<style>svg {{ {css_variables(dark=False)}; background: var(--surface) }} "
            "text { font-family: system-ui, sans-serif !important } "
            f"@media (prefers-color-scheme: dark) {{ svg {{ {css_variables(dark=True)} }} }}</style>"
        )
        write_text(path, re.sub(r"(<svg [^>]*>)", lambda tag: tag[0] + style, svg, count=1) + "\n")
    elif path.suffix == ".png":
        for artist in figure.findobj():
            _repaint(artist)
        with staged_file(path) as staged:
            figure.savefig(staged, format="png", dpi=200, facecolor="#ffffff")
    else:
        raise ValueError(f"a picture is written as .svg or .png, not {path.suffix or 'without an ending'!r}")


def _repaint(artist: object) -> None:
    """Replace the marker colours of one artist by the light palette, for formats without variables."""
    from matplotlib.colors import to_hex

    for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
        get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
        if get is None or put is None:
            continue
        try:
            color = to_hex(get())
        except (TypeError, ValueError):
            continue  # a collection of colours, or none
        if color in PALETTE:
            put(PALETTE[color][1])


def by_group(groups: Mapping[str, Summary]) -> Figure:
    """Accuracy of each source or subset with its interval; the number of comparisons is in the label."""
    found = {name: summary for name, summary in groups.items() if summary.measures is not None}
    rows = [
        ForestRow(f"{name or 'unnamed'}  ({summary.n_scored})", summary.measures.accuracy, strong=False)
        for name, summary in list(found.items())[:MOST_ROWS]
        if summary.measures is not None
    ]
    return draw((8.6, 0.8 + 0.3 * len(rows)), lambda figure: forest(figure.add_subplot(), rows))


def reliability(calibration: Calibration) -> Figure:
    """How often the model's pick was right, against how sure it said it was. On the diagonal it means what it says."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = [row.confidence for row in calibration.bins]
        y = [row.accuracy.value for row in calibration.bins]
        low = min([0.5, *(row.accuracy.low for row in calibration.bins)])
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate("dashed: as sure as it is right", (0.98, 0.03), xycoords="axes fraction", color=MUTED,
                      fontsize=8.5, ha="right")  # fmt: skip
        for row in calibration.bins:
            axes.plot([row.confidence] * 2, [row.accuracy.low, row.accuracy.high], color=ACCENT, linewidth=4, alpha=0.3)
        axes.plot(x, y, color=ACCENT, linewidth=1.4, alpha=0.7)
        axes.plot(x, y, "o", color=ACCENT, markersize=6.5)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(low - 0.02, 1.02)
        axes.set_xlabel("confidence in its pick")
        axes.set_ylabel("how often the pick was right")
        _percent_axes(axes)

    return draw((4.2, 3.7), paint)


def _percent_axes(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(percent))
    axes.tick_params(length=0)


def margins(scored: Sequence[ScoredComparison]) -> Figure:
    """How the margins are spread: right of zero the model agrees with the overseer."""
    values = np.array([example.margin for example in scored])
    reach = float(np.quantile(np.abs(values), 0.995)) or 1.0

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        edges = np.linspace(-reach, reach, 2 * 15 + 1)  # an edge at zero, so that no bar mixes right and wrong
        inside = np.clip(values, -reach, reach)
        heights, _ = np.histogram(inside, edges)
        colors = [BAD if edge < 0 else ACCENT for edge in edges[:-1]]
        width = 0.86 * (edges[1] - edges[0])
        axes.bar((edges[:-1] + edges[1:]) / 2, heights, width=width, color=colors, alpha=0.85, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_xlabel("margin: reward of chosen minus reward of rejected")
        axes.set_ylabel("comparisons")
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(length=0)
        for x, text, color in ((0.02, "disagrees", BAD), (0.98, "agrees", ACCENT)):
            axes.annotate(text, (x, 0.97), xycoords="axes fraction", color=color, fontsize=9, va="top",
                          ha="left" if x < 0.5 else "right")  # fmt: skip

    return draw((4.2, 3.7), paint)


def reward_by_length(scored: Sequence[ScoredComparison]) -> Figure:
    """Reward against length for every response, chosen and rejected, with the median in bands of equal size."""
    chosen = {(example.comparison.prompt, example.comparison.chosen) for example in scored}
    rows = distinct_responses(scored)
    lengths = np.array([len(row[2]) for row in rows], dtype=float)
    rewards = np.array([row[3] for row in rows])
    won = np.array([(row[1].prompt, row[2]) in chosen for row in rows])
    shown = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).astype(int))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for which, color, marker, label in ((won, ACCENT, "o", "chosen"), (~won, BASELINE, "D", "rejected")):
            here = shown[which[shown]]
            axes.plot(lengths[here], rewards[here], marker, color=color, markersize=3, markeredgewidth=0, alpha=0.5,
                      linestyle="none", label=label)  # fmt: skip
        bands = np.array_split(np.argsort(lengths, kind="stable"), max(1, min(12, len(rows) // 15)))
        if len(bands) > 1:
            x = [float(np.median(lengths[band])) for band in bands]
            y = [float(np.median(rewards[band])) for band in bands]
            axes.plot(x, y, color=INK, linewidth=2, label="median")
        if lengths.min() > 0 and lengths.max() > 8 * lengths.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("length of the response in characters")
        axes.set_ylabel("reward")
        axes.tick_params(which="both", length=0)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3, labelcolor=MUTED, fontsize=9, markerscale=2
        )

    return draw((8.6, 3.6), paint)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean over a centred window of about a thirtieth of the values, shorter at both ends."""
    half = max(1, len(values) // 60)
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def curves(
    panels: Sequence[tuple[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]],
    *,
    share: Sequence[str] = (),
    whole: Sequence[str] = (),
    unit: str = "step",
) -> Figure:
    """Training curves side by side.

    Args:
        panels: Title, and lines by name, each `(steps, values)`.
        share: Titles of the panels whose values are shares, shown as percentages.
        whole: Titles of those among them that show the whole range from 0 to 100%.
        unit: What steps are called.
    """
    colors = (ACCENT, BASELINE, BAD, MUTED, INK)

    def paint(figure: Figure) -> None:
        for place, (title, lines) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), place)
            for i, (name, (steps, values)) in enumerate(lines.items()):
                sparse = len(steps) <= 25
                if len(steps) > 60:  # one point per batch: show the course, and the noise behind it
                    axes.plot(steps, values, color=colors[i % len(colors)], linewidth=0.7, alpha=0.25)
                    values = _smooth(values)
                axes.plot(steps, values, color=colors[i % len(colors)], linewidth=1.8, label=name,
                          marker="o" if sparse else None, markersize=3.5)  # fmt: skip
            axes.set_title(title, loc="left", fontsize=10.5, color=INK)
            axes.set_xlabel(unit)
            axes.tick_params(length=0)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
            if title in share:
                axes.yaxis.set_major_formatter(FuncFormatter(percent))
            if title in whole:
                axes.set_ylim(-0.04, 1.04)
            if len(lines) > 1:
                axes.legend(labelcolor=MUTED, fontsize=8.5)

    return draw((8.6, 3.1), paint)
