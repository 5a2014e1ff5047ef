"""How numbers are written."""

from __future__ import annotations

import math

import pytest

from rrm_lm.evaluation.reports import formats
from rrm_lm.evaluation.statistics.metrics import Estimate


def test_settings() -> None:
    assert formats.plain(None) == formats.plain("") == "\N{EN DASH}"
    assert formats.plain(True) == "yes"
    assert formats.plain(1024) == "1024" and formats.count(1024) == "1,024"
    assert formats.plain(1e-4) == "0.0001"
    assert formats.plain({"a": [1, 2], "b": {"c": None}}) == "a: 1, 2, b: c: \N{EN DASH}"
    assert formats.minus("-1.5") == "\N{MINUS SIGN}1.5"


def test_numbers() -> None:
    assert formats.decimal(-0.12345) == "\N{MINUS SIGN}0.123"
    assert formats.decimal(12.345, sign=True) in ("+12.35", "+12.34")
    assert formats.decimal(math.inf) == "\N{INFINITY}" and formats.decimal(-math.inf) == "\N{MINUS SIGN}\N{INFINITY}"
    assert formats.decimal(math.nan) == formats.NONE
    assert formats.points(0.251) == "+25.1" and formats.points(0.251, sign=False) == "25.1"
    assert formats.counted(1, "update") == "1 update" and formats.counted(1200, "update") == "1,200 updates"


def test_intervals() -> None:
    assert formats.decimal_interval(Estimate(1.0, 0.5, math.inf, 9, 5)) == "0.500 to \N{INFINITY}"
    assert formats.decimal_interval(Estimate(1.0, 0.5, 1.5, 9, 1)) == "no interval from one prompt"
    assert formats.change_cell("finished", Estimate(0.25, -0.1, 0.6, 9, 5)) == (
        "+25.0 points", "\N{MINUS SIGN}10.0 to +60.0"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.4, "0 s"), (99.4, "99 s"), (99.5, "2 min"), (720, "12 min"), (5900, "98 min")),
        *((6000, "1 h 40 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h"), (math.inf, "?")),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert formats.duration(seconds) == words
