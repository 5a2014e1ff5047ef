"""Rows of benchmarks that set several chosen responses against several rejected ones."""

from __future__ import annotations

from collections.abc import Iterator

from rrm_lm.feedback.reading.formats.pairs import TIE_TEXTS
from rrm_lm.feedback.reading.formats.row import Row
from rrm_lm.feedback.records import Comparison, Record

RM_BENCH_STYLES = ("concise", "detailed plain text", "detailed markdown")  # the order of its lists


def read_best_of(row: Row) -> Iterator[Record]:
    """RewardBench 2: every chosen response against every rejected one, one group per row.

    Best of four has one chosen and three rejected responses; the Ties subset has several right answers, which are
    not compared with each other. The group is "source/subset/id", so the ids of the Ties subset ("ref:3", "tied:3")
    stay readable at its end.
    """
    yield from _every_pair(row)


def read_rm_bench(row: Row) -> Iterator[Record]:
    """RM-Bench: three chosen and three rejected responses in the same three styles, so nine comparisons, one group."""
    for name in ("chosen", "rejected"):
        count = len(row.texts(name))
        if count != len(RM_BENCH_STYLES):
            row.fail(name, f"has {count} responses with text", "three: " + ", ".join(RM_BENCH_STYLES))
    yield from _every_pair(row, styled=True)


def _every_pair(row: Row, *, styled: bool = False) -> Iterator[Record]:
    prompt = row.prompt()
    for name in ("chosen", "rejected"):
        if not row.texts(name):
            row.fail(name, "has no response with text", "a list of responses")
    group = "/".join(part for part in (row.source, row.subset, row.label("id") or f"row {row.origin.row}") if part)
    for i, chosen in enumerate(row.texts("chosen")):
        for j, rejected in enumerate(row.texts("rejected")):
            if chosen.strip() == rejected.strip():
                row.drop(TIE_TEXTS)
                continue
            styles = (i, j) if styled else None
            yield Comparison(chosen=chosen, rejected=rejected, group=group, styles=styles, **row.about(prompt))
