"""Benchmark rows with several chosen and rejected responses, and rows with ranked responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from rrm_lm.feedback.reading.formats.pairs import TIE_GRADE, TIE_TEXTS
from rrm_lm.feedback.reading.formats.row import Row, as_number
from rrm_lm.feedback.records import Comparison, Record

RM_BENCH_STYLES = ("concise", "detailed plain text", "detailed markdown")  # in the order of the lists


def read_rm_bench(row: Row) -> Iterator[Record]:
    """RM-Bench: three chosen and three rejected responses in the same styles, so nine comparisons in one group."""
    for name in ("chosen", "rejected"):
        count = len(row.texts(name))
        if count != len(RM_BENCH_STYLES):
            row.fail(name, f"has {count} responses with text", "three: " + ", ".join(RM_BENCH_STYLES))
    yield from read_best_of(row, styled=True)


def read_best_of(row: Row, *, styled: bool = False) -> Iterator[Record]:
    """RewardBench 2: every chosen response against every rejected one, in the group "source/subset/id".

    Best-of-four items have one chosen and three rejected responses. Ties items have several correct responses, which
    are not compared with each other; its ids ("ref:3", "tied:3") end the group's name.
    """
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


RANKED_TEXTS = ("answer", "response", "text", "completion", "output", "content")
RANKED_BY = ("rank", "overall_score", "score", "rating")  # a lower rank is better, a higher score is better


def ranked_keys(item: object, ranked_by: Sequence[str] = RANKED_BY) -> tuple[str, str] | None:
    """The keys of the text and of the rank or score of a listed response, if it has both. Turns have roles instead."""
    if not isinstance(item, dict) or "role" in item:
        return None
    text = next((name for name in RANKED_TEXTS if isinstance(item.get(name), str)), None)
    value = next((name for name in ranked_by if as_number(item.get(name)) is not None), None)
    return (text, value) if text and value else None


def read_ranked(row: Row) -> Iterator[Record]:
    """Sets like Nectar: responses with ranks (1 is best) or scores. Each pair with different ranks is a comparison."""
    prompt, name = row.prompt(), row.table.reader
    ranked: list[tuple[float, str]] = []
    unread: dict[str, None] = {}
    items = row.rows(name)
    # Ranks are not comparable with scores, so all responses need the same one.
    by = [key for key in RANKED_BY if all(as_number(item.values.get(key)) is not None for item in items)]
    for item in items:
        keys = ranked_keys(item.values, by)
        if keys is None:
            what = "has a response without a text, or no rank or score that all of them have"
            row.fail(name, what, f"one of each: {RANKED_TEXTS}; {RANKED_BY}")
        unread |= {key: None for key in item.values if key not in keys and item.has(key)}
        value = item.number(keys[1])
        ranked.append((value if keys[1] == "rank" else -value, item.response(keys[0], prompt)))
    for key in unread:
        row.note(f"the field {key!r} of {name} was not read")
    if len(ranked) < 2:
        row.fail(name, f"has {len(ranked)} response with a rank", "at least two")
    for (best, chosen), (other, rejected) in combinations(sorted(ranked, key=lambda pair: pair[0]), 2):
        if best == other or chosen.strip() == rejected.strip():
            row.drop(TIE_GRADE if best == other else TIE_TEXTS)
        else:
            yield Comparison(chosen=chosen, rejected=rejected, margin=other - best, **row.about(prompt))
