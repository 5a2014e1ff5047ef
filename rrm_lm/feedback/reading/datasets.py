"""Feedback from a local file, a folder or a Hub set, as records. Every row that gives none is counted and named.

Nothing is fetched unless the name is one of a Hub set; `datasets` is imported only then.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.reading.files import READERS, data_suffix, read_rows
from rrm_lm.feedback.reading.formats import recognize_rows
from rrm_lm.feedback.reading.formats.row import Row, mean
from rrm_lm.feedback.reading.limits import ReadLimits, too_large
from rrm_lm.feedback.records import (
    Comparison,
    Correction,
    Critique,
    Demonstration,
    GoalExample,
    Origin,
    Prompt,
    Rating,
    Record,
)

KINDS: dict[type, str] = {
    Comparison: "comparisons",
    Critique: "critiques",
    Rating: "ratings",
    Demonstration: "demonstrations",
    Correction: "corrections",
    GoalExample: "goal_examples",
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
    "heldout": "test",
}
BESIDE = ("counts.json", "manifest.json", "run.json")  # what this program writes into a folder beside feedback
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

NumberedRow = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Feedback:
    """What was loaded: records by kind, in the order of the file, and what became of every row."""

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
        """How many records there are of each kind, without the kinds that have none."""
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
    """Load feedback and make every record that its rows hold.

    Ratings (and stated verdicts, which make ratings) of different responses to one prompt also make comparisons, the
    better rated one chosen and the difference as margin; equal ratings make none. Several ratings of one response are
    averaged first. Such comparisons carry neither critiques nor ratings: those stay in their own records, so that each
    word and each number is trained on once.

    Args:
        name: A file, a folder, or a Hub set ("org/name"). Of a folder with files named by split, `split` is read (dev
            and val count as validation); of one without, all files.
        columns: Their column name to ours, for shapes that are not recognised.
        split, revision, config: Which part and version of a Hub set.
        skip_bad_rows: Whether a row with a fault is counted, named and passed over (True) or stops with an error
            (False). None: passed over in a Hub set, whose rows the reader cannot mend; an error in a local file.
            Ties between identical responses are counted in both. Broken files are always an error.
        limits: How much a file or a Hub set may hold; None for the defaults.

    Raises:
        DataError: Nothing of that name, an unknown shape, a broken file, a faulty row, no usable row at all, or more
            than the limits allow.
    """
    path = Path(name).expanduser()
    counts: list[FileCounts] = []
    records: list[Record] = []
    if path.exists() and not _is_saved_dataset(path):
        for file in _files_of(path, split):
            rows = list(read_rows(file, limits))
            records += _records(rows, str(file), file_source(file), columns, bool(skip_bad_rows), counts)
    else:
        rows = _hub_rows(path if path.exists() else _hub_name(name), split, revision, config, limits)
        skip = True if skip_bad_rows is None else skip_bad_rows
        records += _records(rows, f"{name}[{split}]", Path(name).name.lower(), columns, skip, counts)
    return _with_derived(records, counts)


def feedback_of_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    name: str = "the rows",
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
) -> Feedback:
    """As :func:`load_feedback`, from rows that are in memory.

    Args:
        rows: One mapping of columns to values per row, in any shape that a file may have.
        name: Named in messages and as the records' source.
        columns, skip_bad_rows: See :func:`load_feedback`.

    Raises:
        DataError: An unknown shape, a faulty row, or no usable row.
    """
    counts: list[FileCounts] = []
    numbered = [(number, dict(row)) for number, row in enumerate(rows, 1)]
    return _with_derived(_records(numbered, name, "", columns, skip_bad_rows, counts), counts)


def _with_derived(records: Sequence[Record], counts: Sequence[FileCounts]) -> Feedback:
    """Records, and the comparisons that their ratings make."""
    derived, ties = derive_comparisons([record for record in records if isinstance(record, Rating)])
    return Feedback.of([*records, *derived], ReadCounts(tuple(counts), len(derived), ties))


def merge_feedback(*parts: Feedback) -> Feedback:
    """Several loads as one, in the order given."""
    counts = ReadCounts(
        tuple(file for part in parts for file in part.counts.files),
        sum(part.counts.derived_comparisons for part in parts),
        sum(part.counts.derived_ties for part in parts),
    )
    return Feedback.of([record for part in parts for record in part.records()], counts)


def derive_comparisons(ratings: Sequence[Rating]) -> tuple[list[Comparison], int]:
    """Comparisons between the differently rated responses to each prompt of each source, and the number of ties.

    The margin is the difference of the (mean) ratings, in (0, 1]. The origin is that of the better response's first
    rating.
    """
    by_prompt: dict[tuple[str, str, Prompt], dict[str, list[Rating]]] = defaultdict(lambda: defaultdict(list))
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


def _records(
    numbered: Sequence[NumberedRow],
    file: str,
    source: str,
    columns: Mapping[str, str] | None,
    skip_bad_rows: bool,
    all_counts: list[FileCounts],
) -> list[Record]:
    """The records of one file, whose counts are appended to `all_counts`."""
    if not numbered:
        raise DataError("there are no rows", where=file, expected="at least one row of feedback")
    found = recognize_rows([row for _, row in numbered], file, columns)
    known = found.format
    counts = FileCounts(file, known.name, remarks=found.remarks)
    records: list[Record] = []
    for (number, _), values in zip(numbered, found.rows, strict=True):
        row = Row(values, Origin(file, number), known.source or source, counts, found.table)
        try:
            made = list(known.read(row))
        except DataError as error:
            if not skip_bad_rows:
                raise
            made = []
            row.drop(error.what)
        counts.count_row(KINDS[type(record)] for record in made)
        records += made
    if not records:
        raise DataError(
            f"none of the {counts.rows} rows gives a record ({counts.summary().partition('; ')[2]})",
            where=file,
            expected="at least one usable row",
            remedy="mend the rows, or say which column is which with --columns",
        )
    all_counts.append(counts)
    return records


def _files_of(path: Path, split: str) -> list[Path]:
    """A file itself; of a folder, the data files of the split, or all of them if their names tell no split."""
    if path.is_file():
        return [path]
    files = (file for file in path.iterdir() if file.is_file() and file.name not in BESIDE)
    found = sorted(file for file in files if data_suffix(file) in READERS)
    if not found:
        raise DataError(
            "the folder has no data file", where=str(path), expected="a file with one of " + ", ".join(READERS)
        )
    named = {file: _split_of(file) for file in found}
    if not any(named.values()):
        return found
    wanted = [file for file, name in named.items() if name == SPLIT_NAMES.get(split.lower(), split.lower())]
    if not wanted:
        raise DataError(
            f"no file of the folder belongs to the split {split!r}",
            where=str(path),
            expected="one of " + ", ".join(sorted({name for name in named.values() if name})),
            remedy="name another split, or one file",
        )
    return wanted


def _split_of(file: Path) -> str:
    """The split that a file name tells: "train" for train-00000-of-00001.parquet, "" for answers.jsonl."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0], "")


def file_source(file: Path) -> str:
    """What to call a file's records: its name, or its folder's where the name tells only a split."""
    return file.absolute().parent.name if _split_of(file) else file.name.partition(".")[0]


def _is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk`."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _hub_name(name: str) -> str:
    looks_local = name.startswith((".", "/", "~", "\\")) or data_suffix(Path(name)) in READERS or name.count("/") > 1
    if looks_local or not HUB_NAME.fullmatch(name):
        raise DataError(
            "there is no such file or folder",
            where=name,
            expected="a file, a folder, or a Hub set as org/name",
            remedy="check the path",
        )
    return name


def _hub_rows(
    name: str | Path, split: str, revision: str | None, config: str | None, limits: ReadLimits | None
) -> list[NumberedRow]:
    """The rows of a split of a Hub set, or of a folder that `datasets` saved."""
    import datasets

    where = f"{name}[{split}]"
    try:
        if isinstance(name, Path):
            saved = datasets.load_from_disk(str(name))
            table = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            table = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # whatever a set or the way to it may hold, the name and what to do belong beside it
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the set cannot be loaded ({why})", where=where, remedy=_hub_remedy(error)) from error
    limits = limits or ReadLimits()
    if table.data.nbytes > (most := limits.file_bytes()):
        raise too_large(most, where)
    rows: list[NumberedRow] = []
    for number, row in enumerate(table, 1):
        limits.check_row(dict(row), f"{where}, row {number}")
        rows.append((number, dict(row)))
    return rows


def _hub_remedy(error: Exception) -> str:
    text = str(error)
    if "script" in text.lower():  # datasets 4 and later run no code of a set
        return "code of a set is never run: give revision refs/convert/parquet, or download its files and name them"
    if "split" in text.lower() or isinstance(error, KeyError):
        return "name one of the set's splits with --dataset_train_split (of a set to judge by: --split)"
    if "config" in text.lower():
        return "name one of the set's configurations with --dataset_config"
    return "check the name, and that the Hub can be reached (HF_HUB_OFFLINE is not set); a local file needs no network"
