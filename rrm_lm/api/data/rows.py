"""Data for the public classes: feedback and prompts from memory, files or the Hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from datasets import DatasetDict, IterableDatasetDict

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, feedback_of_rows, load_feedback, merge_feedback
from rrm_lm.feedback.reading.prompts import load_prompts, table_prompts
from rrm_lm.feedback.reading.tables import SourceTable
from rrm_lm.feedback.records import Message, Origin, Prompt, Record, check_prompt

# A file, a folder or a Hub set, or several; a `datasets` set; mappings; records of `rrm_lm.feedback.records`.
Rows = str | os.PathLike[str] | Feedback | Iterable[Any]
Messages = Sequence[Mapping[str, Any] | Message]
Text = str | Messages  # a prompt: text, or the messages so far


def read_rows(
    rows: Rows,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    most: int | None = None,
    name: str = "the rows",
) -> Feedback:
    """Read feedback from any of the sources in :data:`Rows`.

    Args:
        rows: A file, a folder or a Hub set, or a list of them; a `datasets` set, streamed or not; a list of mappings in
            any supported shape; or records.
        split: Which split of a Hub set, a folder or a `DatasetDict`.
        columns: Maps their column names to ours, for shapes that are not recognized.
        most: Maximum number of rows to read from memory; a stream may be infinite.
        name: Name of rows from memory, for messages.

    Raises:
        DataError: No such set, an unknown shape, or an invalid row.
    """
    if isinstance(rows, Feedback):
        return rows
    if isinstance(rows, str | os.PathLike):
        return load_feedback(os.fspath(rows), columns=columns, split=split)
    table: Any = rows
    if isinstance(table, Mapping):  # a DatasetDict
        table = _one_split(table, split, name)
    found: list[Any] = list(islice(table, most))
    if found and all(isinstance(row, str | os.PathLike) for row in found):
        return merge_feedback(*(load_feedback(os.fspath(row), columns=columns, split=split) for row in found))
    if found and all(isinstance(row, get_args(Record)) for row in found):
        return Feedback.of(found)
    wrong = next((number for number, row in enumerate(found, 1) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise DataError(
            f"a row is a {type(found[wrong - 1]).__name__}",
            where=f"{name}, row {wrong}",
            expected="mappings of columns to values, records, or names of files or Hub sets",
        )
    return feedback_of_rows(found, name=name, columns=columns)


def _one_split(splits: Mapping[str, Any], split: str, name: str) -> Any:
    if split not in splits:
        raise DataError(f"there is no split {split!r}", where=name, expected="one of " + ", ".join(map(str, splits)))
    return splits[split]


def read_sets(data: Any, *, split: str = "test", columns: Mapping[str, str] | None = None) -> dict[str, Feedback]:
    """Feedback by set name, from a mapping of names to rows, or from rows. Files get their short names. Of a
    `DatasetDict`, `split` is read.
    """
    if isinstance(data, Mapping) and not isinstance(data, DatasetDict | IterableDatasetDict):
        return {str(name): read_rows(rows, split=split, columns=columns, name=str(name)) for name, rows in data.items()}
    names = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(names, list | tuple) and names and all(isinstance(name, str | os.PathLike) for name in names):
        labels = set_labels([os.fspath(name) for name in names])
        return {label: read_rows(name, split=split, columns=columns) for name, label in labels.items()}
    return {"rows": read_rows(data, split=split, columns=columns)}


def set_labels(names: Sequence[str]) -> dict[str, str]:
    """The shortest unique name of each set; a file loses its extension."""
    short = {name: Path(name).name.split(".")[0] if Path(name).exists() else name for name in names}
    repeated = {label for label, count in Counter(short.values()).items() if count > 1}
    return {name: name if label in repeated or not label else label for name, label in short.items()}


# -- prompts ----------------------------------------------------------------------------------------------------------


def to_prompt(value: Text, where: str = "the prompt") -> Prompt:
    """A prompt from text (one user turn) or from messages with ``role`` and ``content``. Raises DataError if the value
    is neither, has no user turn, or ends with the assistant's turn.
    """
    messages = (Message("user", value),) if isinstance(value, str) else tuple(_message(one, where) for one in value)
    check_prompt(messages, Origin(where, 1))
    return messages


def _message(value: Any, where: str) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), str) for name in ("role", "content")):
        raise DataError("a message has no role and content", where=where, expected='{"role": ..., "content": ...}')
    return Message.from_dict(value)


def is_prompt(value: Any) -> bool:
    """Whether a value is one prompt (text or messages), not a list of prompts."""
    if isinstance(value, str):
        return True
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Message) or (isinstance(first, Mapping) and "role" in first)


def read_prompts(
    prompts: Any, *, split: str = "train", rows: dict[Prompt, Mapping[str, Any]] | None = None
) -> list[Prompt]:
    """The distinct prompts in a list of texts or messages, or in any source of feedback. `split` is that of a Hub set,
    a folder or a `DatasetDict`. `rows` receives the row of each prompt, with all its columns. Raises DataError for a
    prompt without a user turn, or no prompt at all.
    """
    if isinstance(prompts, Mapping):
        prompts = _one_split(prompts, split, "prompts")
    if isinstance(prompts, str | os.PathLike):
        found = load_prompts(os.fspath(prompts), split=split, rows=rows)
    elif isinstance(prompts, Feedback):
        found = [record.prompt for record in prompts.records() if record.prompt]
    else:
        listed = list(prompts)
        bare = all(isinstance(one, Mapping) and set(one) == {"prompt"} for one in listed)
        listed = [one["prompt"] for one in listed] if bare else listed
        if bare or all(is_prompt(one) for one in listed):
            found = [to_prompt(one, f"{'row' if bare else 'prompt'} {number}") for number, one in enumerate(listed, 1)]
            if rows is not None:
                rows |= {prompt: {"prompt": one} for prompt, one in zip(found, listed, strict=True)}
        elif all(isinstance(one, Mapping) for one in listed):
            table = SourceTable([(number, dict(one)) for number, one in enumerate(listed, 1)], "the rows", "")
            found = [prompt for prompt, _ in table_prompts(table, None, False, rows)]
        else:
            found = [record.prompt for record in read_rows(listed).records() if record.prompt]
    if not found:
        raise DataError("there is no prompt", where="prompts", expected="texts, messages, rows or a file")
    return list(dict.fromkeys(found))
