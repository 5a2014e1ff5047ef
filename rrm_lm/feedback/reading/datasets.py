"""Load feedback from a local file, a folder or a Hub set as records. Every row without a record is counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from rrm_lm.errors import LOOK, DataError
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.reading.formats import recognize_rows
from rrm_lm.feedback.reading.formats.row import Row, mean
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.reading.tables import SourceTable, is_local_file, read_tables
from rrm_lm.feedback.records import (
    KINDS,
    Comparison,
    Correction,
    Critique,
    Demonstration,
    GoalExample,
    Origin,
    Rating,
    Record,
)
from rrm_lm.feedback.store.files import is_store
from rrm_lm.feedback.store.records import numbered_records, read_store

REPEATED = "the row repeats an earlier one"


@dataclass(frozen=True)
class Feedback:
    """Records by kind, in the order of the file, and the counts of rows."""

    comparisons: tuple[Comparison, ...] = ()
    critiques: tuple[Critique, ...] = ()
    ratings: tuple[Rating, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    corrections: tuple[Correction, ...] = ()
    goal_examples: tuple[GoalExample, ...] = ()
    counts: ReadCounts = field(default_factory=ReadCounts)

    @classmethod
    def of(cls, records: Iterator[Record] | Sequence[Record], counts: ReadCounts | None = None) -> Feedback:
        """Sort records by kind, keeping their order."""
        sorted_records: dict[str, list[Any]] = {kind: [] for kind in KINDS.values()}
        for record in records:
            sorted_records[KINDS[type(record)]].append(record)
        return cls(**{kind: tuple(found) for kind, found in sorted_records.items()}, counts=counts or ReadCounts())

    def records(self) -> Iterator[Record]:
        """All records, kind by kind."""
        for kind in KINDS.values():
            yield from getattr(self, kind)

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS.values())

    def sizes(self) -> dict[str, int]:
        """The number of records of each kind that has any."""
        return {kind: size for kind in KINDS.values() if (size := len(getattr(self, kind)))}


def load_feedback(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
    skip_bad_rows: bool | None = None,
    limits: ReadLimits | None = None,
) -> Feedback:
    """Load feedback and make all records that its rows hold.

    Different ratings (or verdicts, which make ratings) of responses to one prompt also make comparisons: the higher
    rated response is chosen, and the difference is the margin. Equal ratings make none. Several ratings of one response
    are averaged first. These comparisons carry no critiques or ratings, so nothing is trained on twice.

    Args:
        name: A file, a folder, or a Hub set ("org/name"); see `tables.read_tables` for folders and splits. Or a store
            of feedback (`.db`), whose answers need no recognition.
        columns: Maps their column names to ours, for shapes that are not recognized.
        split, revision, config: Part and version of the set.
        skip_bad_rows: True counts and skips invalid rows; False makes them errors. None skips them in a Hub set, whose
            rows cannot be fixed here, but not in a local file. Ties are always counted, and a broken file is always an
            error.
        limits: Maximum size of a file or Hub set; None for the defaults.

    Raises:
        DataError: No such set, an unknown shape, a broken file, an invalid row, no usable row, or more data than the
            limits allow.
    """
    skip = not is_local_file(name) if skip_bad_rows is None else skip_bad_rows
    counts: list[FileCounts] = []
    records: list[Record] = []
    if is_store(name):
        records, of_store = store_records(name)
        return _with_derived(records, [of_store])
    for table in read_tables(name, split=split, revision=revision, config=config, limits=limits):
        records += read_records(table, columns, skip, counts)
    return _with_derived(records, counts)


def store_records(name: str) -> tuple[list[Record], FileCounts]:
    """The records of a store's answers, and their counts. Raises DataError: it cannot be read, or gives no record."""
    counts, records = FileCounts(name, "a store of feedback"), []
    for number, made in numbered_records(read_store(name), name):
        counts.count_row(KINDS[type(record)] for record in made)
        if not made:
            counts.drop("an answer without feedback to train on, such as a tie or a skip", Origin(name, number))
        records += made
    if not records:
        what = f"none of the {counts.rows} answers gives a record"
        raise DataError(what, where=name, expected="at least one", remedy="rrm-lm ask --store collects answers")
    return records, counts


def feedback_of_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    name: str = "the rows",
    columns: Mapping[str, str] | None = None,
) -> Feedback:
    """As :func:`load_feedback`, for rows in memory. Each row maps columns to values, in any shape that a file may have.
    `name` is the rows' name in messages and the records' source. Raises DataError for an unknown shape, an invalid row,
    or no usable row.
    """
    counts: list[FileCounts] = []
    table = SourceTable([(number, dict(row)) for number, row in enumerate(rows, 1)], name, "")
    return _with_derived(read_records(table, columns, False, counts), counts)


def _with_derived(records: Sequence[Record], counts: Sequence[FileCounts]) -> Feedback:
    """The records and the comparisons derived from their ratings."""
    derived, ties = derive_comparisons([record for record in records if isinstance(record, Rating)])
    return Feedback.of([*records, *derived], ReadCounts(tuple(counts), len(derived), ties))


def merge_feedback(*parts: Feedback) -> Feedback:
    """Merge several parts, in the given order."""
    counts = ReadCounts(
        tuple(file for part in parts for file in part.counts.files),
        sum(part.counts.derived_comparisons for part in parts),
        sum(part.counts.derived_ties for part in parts),
    )
    return Feedback.of([record for part in parts for record in part.records()], counts)


def derive_comparisons(ratings: Sequence[Rating]) -> tuple[list[Comparison], int]:
    """Compare differently rated responses to the same prompt and source; returns the comparisons and number of ties.

    The margin is the difference of the (mean) ratings, in (0, 1]. The origin is that of the chosen response's first
    rating.
    """
    by_prompt: dict[tuple[Any, ...], dict[str, list[Rating]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        by_prompt[rating.source, rating.subset, rating.prompt][rating.response.strip()].append(rating)
    made, ties = [], 0
    for (source, subset, prompt), by_response in by_prompt.items():
        rated = [(mean([rating.rating for rating in group]) or 0.0, group[0]) for group in by_response.values()]
        for first, second in combinations(rated, 2):
            if abs(first[0] - second[0]) < 1e-9:
                ties += 1
                continue
            (high, best), (low, other) = (first, second) if first[0] > second[0] else (second, first)
            made.append(
                Comparison(
                    prompt=prompt,
                    chosen=best.response,
                    rejected=other.response,
                    margin=high - low,
                    source=source,
                    subset=subset,
                    origin=best.origin,
                )
            )
    return made, ties


def read_records(
    table: SourceTable, columns: Mapping[str, str] | None, skip_bad_rows: bool, all_counts: list[FileCounts]
) -> list[Record]:
    """Read the records of one table and append its counts to `all_counts`."""
    file = table.where
    if not table.rows:
        raise DataError("there are no rows", where=file, expected="at least one row of feedback")
    try:
        found = recognize_rows([row for _, row in table.rows], file, columns)
    except DataError as error:
        look = f"{error.remedy}{LOOK}{file} shows its columns" if is_local_file(file) else error.remedy
        raise DataError(error.what, where=error.where, expected=error.expected, remedy=look) from None
    known, counts = found.format, found.counts
    counts.revision = table.revision
    records: list[Record] = []
    seen: set[Any] = set()
    for (number, _), values in zip(table.rows, found.rows, strict=True):
        row = Row(values, Origin(file, number), known.source or table.source, counts, found.table)
        try:
            made = list(known.read(row))
        except DataError as error:
            if not skip_bad_rows:
                raise
            made = []
            row.drop(error.what)
        counts.count_row(KINDS[type(record)] for record in made)
        records += made
        same = tuple(replace(record, origin=Origin("", 0)) for record in made)
        if same and same in seen:
            row.note(REPEATED)
        seen.add(same)
    if not records:
        what = f"none of the {counts.rows} rows gives a record ({counts.summary().partition('; ')[2]})"
        remedy = "fix the rows, or say which column is which with --columns"
        raise DataError(what, where=file, expected="at least one usable row", remedy=remedy)
    all_counts.append(counts)
    return records
