"""Prompts to answer, from any file that feedback is read from, or from one that has nothing but prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.datasets import file_source, load_feedback
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.formats import prompt_rows
from rrm_lm.feedback.reading.formats.row import Row
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Origin, Prompt, check_prompt


def load_prompts(name: str, **options: Any) -> list[Prompt]:
    """The different prompts of one set, in the order of their first appearance: see `prompt_sources`."""
    return list(prompt_sources([name], **options))


def prompt_sources(names: Sequence[str], **options: Any) -> dict[Prompt, tuple[str, str]]:
    """The different prompts of several sets in the order of their first appearance, each with its source and subset.

    Args:
        names: Files, folders, or Hub sets ("org/name").
        options: As for `_prompts_of`.

    Raises:
        DataError: Nothing of that name, an unknown shape, a faulty row, or no prompt at all.
    """
    found: dict[Prompt, tuple[str, str]] = {}
    for name in names:
        for prompt, source in _prompts_of(name, **options).items():
            found.setdefault(prompt, source)
    return found


def _prompts_of(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    config: str | None = None,
    skip_bad_rows: bool | None = None,
    limits: ReadLimits | None = None,
) -> dict[Prompt, tuple[str, str]]:
    """The different prompts of a set in the order of their first appearance, each with its source and subset.

    Args:
        name: A file, a folder, or a Hub set ("org/name"). A local file whose rows have a prompt (text, a transcript or
            messages) and are no feedback of a known shape gives the prompts alone.
        columns: Their column name to ours, such as `question` to `prompt`.
        split, config: Which part of a Hub set.
        skip_bad_rows: Whether a faulty row is passed over; None: only in a Hub set.
        limits: How much a file or a Hub set may hold; None for the defaults.

    Raises:
        DataError: Nothing of that name, an unknown shape, a faulty row, or no prompt at all.
    """
    path = Path(name).expanduser()
    prompts = _bare_prompts(path, columns, bool(skip_bad_rows), limits) if path.is_file() else None
    if prompts is None:
        feedback = load_feedback(
            name, columns=columns, split=split, config=config, skip_bad_rows=skip_bad_rows, limits=limits
        )
        prompts = {}
        for record in feedback.records():
            if record.prompt:
                prompts.setdefault(record.prompt, (record.source, record.subset))
    if not prompts:
        raise DataError("there is no prompt in it", where=name, expected="at least one row with a prompt")
    return prompts


def _bare_prompts(
    path: Path, columns: Mapping[str, str] | None, skip_bad_rows: bool, limits: ReadLimits | None
) -> dict[Prompt, tuple[str, str]] | None:
    """The prompts of a file without responses; None if its rows are feedback of a known shape, or have no prompts."""
    numbered = list(read_rows(path, limits))
    found = prompt_rows([values for _, values in numbered], str(path), columns)
    if found is None:
        return None
    counts = FileCounts(str(path), "prompts", remarks=found.remarks)
    prompts: dict[Prompt, tuple[str, str]] = {}
    for (number, _), values in zip(numbered, found.rows, strict=True):
        origin = Origin(str(path), number)
        try:
            row = Row(values, origin, file_source(path), counts, found.table)
            prompt = row.prompt()
            check_prompt(prompt, origin)
        except DataError:
            if not skip_bad_rows:
                raise
        else:
            prompts.setdefault(prompt, (row.source, row.subset))
    return prompts
