"""Number formatting in reports, tables, cards and logs. Numbers become text only here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rrm_lm.evaluation.policies.comparison import SHARES
from rrm_lm.evaluation.policies.results import PolicyComparison, PolicyResult
from rrm_lm.evaluation.statistics.metrics import Estimate

NONE = "\N{EN DASH}"

BASELINE_NAMES = {
    "longer": "always the longer response",
    "shorter": "always the shorter response",
    "style": "style alone",
    "words": "bag of words",
    "probe": "linear probe on frozen states",
}

Cell = tuple[str, str]  # table cell: a number, and the interval or remark below it


def minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def fixed(value: float, places: int = 2, *, sign: bool = False) -> str:
    if math.isnan(value):
        return NONE
    return minus(f"{value:{'+' if sign else ''}.{places}f}").replace("inf", "\N{INFINITY}")


def fixed_interval(estimate: Estimate) -> str:
    return f"{fixed(estimate.low, sign=True)} to {fixed(estimate.high, sign=True)}"


def decimal(value: float, *, sign: bool = False) -> str:
    """A reward or a KL divergence: three decimal places, two from 10 on."""
    return fixed(value, 2 if abs(value) >= 10 else 3, sign=sign)


def decimal_interval(estimate: Estimate, *, sign: bool = False) -> str:
    if estimate.clusters < 2:
        return "no interval from one prompt"
    return f"{decimal(estimate.low, sign=sign)} to {decimal(estimate.high, sign=sign)}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def percent_interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}%"


def points(value: float, *, sign: bool = True) -> str:
    """A difference of shares in percentage points, without the unit."""
    return fixed(100 * value, 1, sign=sign)


def points_interval(estimate: Estimate) -> str:
    return f"{points(estimate.low)} to {points(estimate.high)}"


def axis_percent(value: float, _position: int | None = None) -> str:
    """A label on an axis: 0.7 as 70%."""
    return f"{100 * value:.0f}%"


def axis_number(value: float, _position: int | None = None) -> str:
    """A label on an axis, as short as possible."""
    return minus(f"{value:.3g}")


def count(value: object) -> str:
    """A count with thousands separators; other values are formatted by `plain`."""
    return f"{value:,}" if isinstance(value, int) else plain(value)


def counted(number: int, noun: str) -> str:
    """`1 update`, `1,200 updates`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(value: object) -> str:
    """A setting in a form that can be copied into a configuration file."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or NONE
    if isinstance(value, Sequence) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(plain(item) for item in value) or NONE
    return json.dumps(value, ensure_ascii=False, default=str)


def duration(seconds: float) -> str:
    """Approximate duration in one or two units: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def markdown_cell(text: str) -> str:
    """Text for a Markdown table cell: one line, without a bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def decimal_cell(estimate: Estimate | None, *, sign: bool = False) -> Cell:
    if estimate is None:
        return NONE, ""
    return decimal(estimate.value, sign=sign), decimal_interval(estimate, sign=sign)


def percent_cell(estimate: Estimate | None) -> Cell:
    return (NONE, "") if estimate is None else (percent(estimate.value), percent_interval(estimate))


def level_cell(name: str, estimate: Estimate) -> Cell:
    """The mean of a text property (see `policies.comparison.DRIFTS`)."""
    return percent_cell(estimate) if name in SHARES else _one_place(estimate, 1, sign=False)


def change_cell(name: str, estimate: Estimate | None) -> Cell:
    """The change of a text property from the reference."""
    if estimate is None:
        return NONE, ""
    value, interval = _one_place(estimate, 100 if name in SHARES else 1, sign=True)
    return (f"{value} points" if name in SHARES else value), interval


def _one_place(estimate: Estimate, factor: float, *, sign: bool) -> Cell:
    value, low, high = (fixed(factor * x, 1, sign=sign) for x in (estimate.value, estimate.low, estimate.high))
    return value, f"{low} to {high}" if estimate.clusters > 1 else ""


def greedy_cells(comparison: PolicyComparison, result: PolicyResult, measure: str) -> list[Cell]:
    """A measure at temperature 0, and its change from the reference; no cells if no policy was measured there."""
    if not comparison.reference.greedy:
        return []
    found = result.greedy.get(measure)
    return [decimal_cell(found and found.level), decimal_cell(found and found.change, sign=True)]
