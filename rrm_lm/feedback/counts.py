"""Counts of rows that were read, used and dropped; the first dropped rows are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.feedback.records import Origin

NAMED_ORIGINS = 5  # rows named per reason; the rest are only counted


@dataclass
class Tally:
    """How often something happened, and the first rows where it did."""

    count: int = 0
    origins: list[Origin] = field(default_factory=list)

    def add(self, origin: Origin) -> None:
        self.count += 1
        if len(self.origins) < NAMED_ORIGINS:
            self.origins.append(origin)

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "first_rows": [str(origin) for origin in self.origins]}

    def __str__(self) -> str:
        rows = ", ".join(str(origin.row) for origin in self.origins)
        return f"{self.count} (row {rows}{', ...' if self.count > len(self.origins) else ''})"


@dataclass
class FileCounts:
    """Counts of the rows of one file, or of one split of a Hub set."""

    # file, format: name of the file or split, and the recognized format
    file: str
    format: str
    # rows, rows_used, rows_dropped: rows read; rows that gave a record; rows that gave none
    rows: int = 0
    rows_used: int = 0
    rows_dropped: int = 0
    made: Counter[str] = field(default_factory=Counter)  # records by kind ("comparisons", "critiques", ...)
    # Comparisons or whole rows that were left out, by reason. A used row can also be here: a tie between two critiqued
    # responses gives no comparison, but its critiques are kept.
    dropped: dict[str, Tally] = field(default_factory=dict)
    # values that were converted when read, by reason; nothing is left out
    notes: dict[str, Tally] = field(default_factory=dict)
    # the name of each column that is read, and the name it is read as
    columns: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # columns that are not read, each with its likely meaning
    remarks: list[str] = field(default_factory=list)  # assumptions about columns, such as renamed ones and scales
    revision: str = ""  # commit of a Hub set, if known

    def drop(self, reason: str, origin: Origin) -> None:
        self.dropped.setdefault(reason, Tally()).add(origin)

    def note(self, reason: str, origin: Origin) -> None:
        self.notes.setdefault(reason, Tally()).add(origin)

    def count_row(self, kinds: Iterable[str]) -> None:
        """Count one row that gave records of these kinds; a row without records was dropped."""
        made = list(kinds)
        self.made.update(made)
        self.rows += 1
        self.rows_used += bool(made)
        self.rows_dropped += not made

    def to_dict(self) -> dict[str, Any]:
        tallies = {"dropped": self.dropped, "notes": self.notes}
        return vars(self) | {
            name: {why: one.to_dict() for why, one in found.items()} for name, found in tallies.items()
        }

    def summary(self) -> str:
        made = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.made.items()) or "nothing"
        parts = [f"{self.file}: {self.rows} rows ({self.format}) gave {made}"]
        parts += [f"left out, {reason}: {tally}" for reason, tally in self.dropped.items()]
        parts += [f"{reason}: {tally}" for reason, tally in self.notes.items()] + self.remarks
        parts += ["not read: " + ", ".join(self.unread)] if self.unread else []
        return "; ".join(parts)


@dataclass(frozen=True)
class ReadCounts:
    """The counts of all files."""

    files: tuple[FileCounts, ...] = ()
    derived_comparisons: int = 0  # comparisons made from ratings (or verdicts) of two responses to one prompt
    derived_ties: int = 0  # pairs with equal ratings, which give no comparison

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def rows_dropped(self) -> int:
        return sum(file.rows_dropped for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "rows_dropped": self.rows_dropped,
            "derived_comparisons": self.derived_comparisons,
            "derived_ties": self.derived_ties,
            "files": [file.to_dict() for file in self.files],
        }

    def summary(self) -> str:
        """A line per file, and one for comparisons made from ratings, if any."""
        return "\n".join([*(file.summary() for file in self.files), *filter(None, [self.derived()])])

    def derived(self) -> str:
        """How many comparisons were made from ratings, or ""."""
        ties = f" ({self.derived_ties} pairs rated the same gave none)" if self.derived_ties else ""
        made = f"{self.derived_comparisons} comparisons made from ratings of one prompt's responses{ties}"
        return made if self.derived_comparisons or self.derived_ties else ""
