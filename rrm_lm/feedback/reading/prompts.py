"""Load prompts from any feedback set, or from a set of prompts only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.reading.datasets import Feedback, read_records
from rrm_lm.feedback.reading.formats import prompt_rows
from rrm_lm.feedback.reading.formats.row import Row
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.reading.tables import SourceTable, is_local_file, read_tables
from rrm_lm.feedback.records import Demonstration, Origin, Prompt, check_prompt
from rrm_lm.feedback.store.files import is_store
from rrm_lm.feedback.store.records import read_store

logger = logging.getLogger(__name__)


def load_prompts(name: str, **options: Any) -> list[Prompt]:
    """The distinct prompts of one set, in order of first appearance; see `prompt_sources`."""
    return list(prompt_sources([name], **options))


def prompt_sources(
    names: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    config: str | None = None,
    skip_bad_rows: bool | None = None,
    limits: ReadLimits | None = None,
    rows: dict[Prompt, Mapping[str, Any]] | None = None,
    every_row: list[tuple[Prompt, Mapping[str, Any]]] | None = None,
    counts: list[FileCounts] | None = None,
) -> dict[Prompt, tuple[str, str]]:
    """The distinct prompts of several sets in order of first appearance, each with its source and subset.

    `names` are files, folders, or Hub sets ("org/name") of feedback or of prompts only; the other options are those of
    `load_feedback`. `rows` receives the first row of each prompt, with all its columns, `every_row` the prompt and the
    columns of each row, and `counts` the counts of each file.
    Raises DataError for no such set, an unknown shape, an invalid row, or no prompt.
    """
    found: dict[Prompt, tuple[str, str]] = {}
    for name in names:
        skip = not is_local_file(name) if skip_bad_rows is None else skip_bad_rows
        prompts: list[tuple[Prompt, tuple[str, str]]] = []
        if is_store(name):
            items = read_store(name).items.values()
            prompts = [(item.prompt, (item.source, "")) for item in items if item.prompt]
        for table in () if is_store(name) else read_tables(name, split=split, config=config, limits=limits):
            prompts += table_prompts(table, columns, skip, rows, every_row, counts)
        if not prompts:
            raise DataError("there is no prompt in it", where=name, expected="at least one row with a prompt")
        for prompt, source in prompts:
            found.setdefault(prompt, source)
    return found


def table_prompts(
    table: SourceTable,
    columns: Mapping[str, str] | None,
    skip_bad_rows: bool,
    rows: dict[Prompt, Mapping[str, Any]] | None = None,
    every_row: list[tuple[Prompt, Mapping[str, Any]]] | None = None,
    counts: list[FileCounts] | None = None,
) -> list[tuple[Prompt, tuple[str, str]]]:
    """The prompts of one table with their sources and subsets; see `prompt_sources`."""
    counts = [] if counts is None else counts
    found = _bare_prompts(table, columns, skip_bad_rows, counts)
    if found is None:
        records = read_records(table, columns, skip_bad_rows, counts)
        found = [(r.origin.row, r.prompt, (r.source, r.subset)) for r in records if r.prompt]
    values = dict(table.rows) if rows is not None or every_row is not None else {}
    if every_row is not None:
        every_row += [(prompt, values[number]) for number, prompt, _ in found]
    if rows is not None:
        differ = sum(rows.setdefault(prompt, values[number]) != values[number] for number, prompt, _ in found)
        if differ:
            message = "%s: %d rows repeat the prompt of another row with other columns; the first row's are used"
            logger.warning(message, table.where, differ)
    return [(prompt, source) for _, prompt, source in found]


def _bare_prompts(
    table: SourceTable, columns: Mapping[str, str] | None, skip_bad_rows: bool, counts: list[FileCounts]
) -> list[tuple[int, Prompt, tuple[str, str]]] | None:
    """The numbered prompts of rows without responses; None for feedback of a known shape or rows without prompts."""
    found = prompt_rows([values for _, values in table.rows], table.where, columns)
    if found is None:
        return None
    file = found.counts
    prompts: list[tuple[int, Prompt, tuple[str, str]]] = []
    for (number, _), values in zip(table.rows, found.rows, strict=True):
        row = Row(values, Origin(table.where, number), table.source, file, found.table)
        try:
            prompt = row.prompt()
            check_prompt(prompt, row.origin)
        except DataError as error:
            if not skip_bad_rows:
                raise
            row.drop(error.what)
            file.count_row([])
        else:
            prompts.append((number, prompt, (row.source, row.subset)))
            file.count_row(["prompts"])
    logger.info("read %s", file.summary())
    counts.append(file)
    return prompts


def as_feedback(prompts: Mapping[Prompt, tuple[str, str]], counts: Sequence[FileCounts] = ()) -> Feedback:
    """Prompts with a stand-in for a response, for functions that split or compare feedback."""
    records = [
        Demonstration(prompt=prompt, response="-", source=source, subset=subset, origin=Origin("the prompts", row))
        for row, (prompt, (source, subset)) in enumerate(prompts.items(), start=1)
    ]
    return Feedback.of(records, ReadCounts(tuple(counts)))
