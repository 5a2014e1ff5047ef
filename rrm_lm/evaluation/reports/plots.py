"""Drawing and embedding of report figures.

Figures are drawn in a few marker colors, which `inline_svg` replaces with CSS variables, so one SVG serves light pages,
dark pages and print. Text stays text: it is searchable and uses the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rrm_lm.evaluation.reports.formats import axis_number, axis_percent, percent
from rrm_lm.evaluation.statistics.metrics import Estimate, Floats

# Marker colors for drawing, and the colors on light and dark pages.
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
DASHED = (0, (3, 3))
MOST_POINTS = 1500  # in a scatter plot; more would only make the page larger

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a set's name does not start math
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
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A row of a forest plot: a label, an estimate, and the style of its marker."""

    label: str
    estimate: Estimate
    color: str = ACCENT
    strong: bool = True
    below: float = 1.0  # distance to the next row
    dots: tuple[float, ...] = ()  # the single runs of which the estimate is the mean


def css_variables(dark: bool) -> str:
    return "; ".join(f"--{name}: {night if dark else day}" for name, day, night in PALETTE.values())


def draw(size: tuple[float, float], paint: Callable[[Figure], None]) -> Figure:
    """Draw a figure of `size` inches in the style of all reports."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
    return figure


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page: no external reference, colors as CSS variables.

    `name` is a prefix that makes ids unique on the page: letters, digits and dashes. `description` is the alternative
    text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for before in ('\\bid="', "url\\(#", 'href="#'):
        svg = re.sub(before, lambda found: f"{found[0]}{name}-", svg)
    # The page sets the size; the view box keeps the aspect ratio.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    for color, (variable, _, _) in PALETTE.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.strip()


def short(label: str, most: int = 42) -> str:
    """Shorten a long label to its end, because paths differ at the end."""
    return label if len(label) <= most else "\N{HORIZONTAL ELLIPSIS}" + label[-most + 1 :]


def finite_ends(estimate: Estimate) -> list[float]:
    """The ends of the interval; the value in place of an infinite end."""
    return [end if math.isfinite(end) else estimate.value for end in (estimate.low, estimate.high)]


def number_axis(axes: Axes) -> None:
    """Short numbers on the vertical axis."""
    axes.yaxis.set_major_formatter(FuncFormatter(axis_number))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def label_by_length(axes: Axes, unit: str, reward: str) -> None:
    """Labels of a plot of rewards by length, with the legend above it, where it covers no data."""
    axes.set_xlabel(f"length of the response in {unit}")
    axes.set_ylabel(reward)
    number_axis(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=9)


def spread_out(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int_]]:
    """At most `most` indices below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def medians(x: Floats, y: Floats, most: int) -> tuple[list[float], list[float]]:
    """Medians of x and y in at most `most` bands of x with equally many points, at least 15 each."""
    bands = np.array_split(np.argsort(x, kind="stable"), max(1, min(most, len(x) // 15)))
    return [float(np.median(x[band])) for band in bands], [float(np.median(y[band])) for band in bands]


def forest(
    rows: Sequence[ForestRow],
    line: float,
    *,
    note: str = "",
    label: str = "",
    written: Callable[[float], str] = percent,
    height: float = 0.44,
) -> Figure:
    """A forest plot: estimates with intervals as rows, and a dashed line at `line`.

    `note` is text at the line, `height` that of a row in inches. `written` formats the numbers on the right; with
    `percent`, the axis shows 0 to 100%.
    """
    places = np.cumsum([0.0, *(row.below for row in rows[:-1])]).tolist()
    ends = [finite_ends(row.estimate) for row in rows]
    shown = [line, *(value for row, span in zip(rows, ends, strict=True) for value in (*span, *row.dots))]
    low, high = min(shown), max(shown)
    pad = 0.06 * max(high - low, 1e-3)
    low, high = low - pad, high + pad
    if written is percent:
        low, high = max(0.0, low), min(1.0 + 0.2 * pad, high)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_xlim(low, high)
        axes.set_ylim(places[-1] + 0.55, -0.95 if note else -0.55)
        axes.axvline(line, color=MUTED, linewidth=1, linestyle=DASHED)
        if note:
            axes.annotate(note, (line, -0.88), (5, 0), textcoords="offset points", color=MUTED, fontsize=9, va="center")
        for y, row, span in zip(places, rows, ends, strict=True):
            weight = 1.0 if row.strong else 0.62
            axes.plot(span, [y, y], color=row.color, linewidth=5.5 * weight, alpha=0.32)
            axes.plot([row.estimate.value], [y], "o", color=row.color, markersize=9.5 * weight)
            axes.plot(row.dots, [y] * len(row.dots), "o", markersize=4, color=INK, alpha=0.55, markeredgewidth=0)
        axes.set_yticks(places, [short(row.label) for row in rows])
        numbers = axes.secondary_yaxis("right")
        numbers.set_yticks(places, [written(row.estimate.value) for row in rows])
        for side, spine in ((axes, "left"), (numbers, "right")):
            side.spines[spine].set_visible(False)
            side.tick_params(axis="y", labelsize=10.5)
            for text, row in zip(side.get_yticklabels(), rows, strict=True):
                text.set_color(INK if row.strong else MUTED)
                text.set_fontweight("bold" if row.strong and side is numbers else "normal")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(axis_percent if written is percent else axis_number))
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(label, labelpad=6)

    return draw((8.6, (0.85 if note else 0.7) + (0.25 if label else 0) + height * len(rows)), paint)
