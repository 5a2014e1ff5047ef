"""Prompts to answer, from any file that feedback is read from, or from one that has nothing but prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.formats import recognise, rename
from rrm_lm.feedback.reading.formats.row import Row
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Origin, Prompt, check_prompt


def load_prompts(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    config: str | None = None,
    skip_bad_rows: bool | None = None,
    limits: ReadLimits | None = None,
) -> list[Prompt]:
    """The different prompts of a set, in the order of their first appearance.

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
        prompts = [record.prompt for record in feedback.records() if record.prompt]
    if not prompts:
        raise DataError("there is no prompt in it", where=name, expected="at least one row with a prompt")
    return list(dict.fromkeys(prompts))


def _bare_prompts(
    path: Path, columns: Mapping[str, str] | None, skip_bad_rows: bool, limits: ReadLimits | None
) -> list[Prompt] | None:
    """The prompts of a file without responses; None if its rows are feedback of a known shape, or have no prompts."""
    numbered = list(read_rows(path, limits))
    rows = [values for _, values in numbered]
    if columns:
        rows = rename(rows, columns, str(path))
    if not any("prompt" in values for values in rows):
        return None
    try:
        recognise(rows, str(path))
        return None
    except DataError:  # no shape of feedback has these columns
        counts = FileCounts(str(path), "prompts")
    prompts = []
    for (number, _), values in zip(numbered, rows, strict=True):
        origin = Origin(str(path), number)
        try:
            prompt = Row(values, origin, path.name, counts).prompt()
            check_prompt(prompt, origin)
        except DataError:
            if not skip_bad_rows:
                raise
        else:
            prompts.append(prompt)
    return prompts
