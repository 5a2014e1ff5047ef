"""One row of a table, asked for by column: every answer is checked, and every fault names file, row and column."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.records import Message, Origin, Prompt, find_surrogate

HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # Anthropic HH-RLHF
HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # several turns in a HelpSteer prompt
TURN_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


class Row:
    """A row as a format reads it.

    Args:
        values: Column to value; None where there is none.
        origin: File and row number.
        source: What to call the source when the row does not say.
        counts: Where drops and notes are counted.
        columns: The columns of the file, which this row may lack.
    """

    def __init__(
        self,
        values: dict[str, Any],
        origin: Origin,
        source: str,
        counts: FileCounts,
        columns: Collection[str] = (),
    ) -> None:
        self.values, self.origin, self.counts, self.columns = values, origin, counts, columns
        self.source = self.label("source") or source
        self.subset = self.label("subset") or self.label("domain")

    def about(self, prompt: Prompt) -> dict[str, Any]:
        """The fields that all records of this row share."""
        return {"prompt": prompt, "source": self.source, "subset": self.subset, "origin": self.origin}

    def has(self, *names: str) -> bool:
        """Whether any of the columns has something in it (a blank text is nothing)."""
        return any(not _is_nothing(self.values.get(name)) for name in names)

    def label(self, name: str) -> str:
        """A short text or number that only names something, "" if there is none."""
        value = self.values.get(name)
        return "" if _is_nothing(value) or isinstance(value, list | dict) else str(value).strip()

    def text(self, *names: str) -> str:
        """The text of the first of these columns that has any, as it is written.

        Raises:
            DataError: The column is missing, null, empty or not text.
        """
        name = next((name for name in names if self.has(name)), names[0])
        value = self.require(name)
        if not isinstance(value, str):
            self.fail(name, f"is {_a(value)}, not text", "text")
        return self._encodable(name, value)

    def optional_text(self, *names: str) -> str | None:
        return self.text(*names) if self.has(*names) else None

    def texts(self, *names: str) -> tuple[str, ...]:
        """All texts of these columns, each with one text or a list; blank ones and missing columns are passed over."""
        found: list[str] = []
        for name in names:
            value = self.values.get(name)
            for item in value if isinstance(value, list) else [value]:
                if _is_nothing(item):
                    continue
                if not isinstance(item, str):
                    self.fail(name, f"holds {_a(item)}, not text", "text or a list of texts")
                found.append(self._encodable(name, item))
        return tuple(found)

    def require(self, name: str) -> Any:
        """The value of a column that must have one."""
        if name not in self.values:
            self.fail(name, "is missing", f"a column {name} in every row")
        value = self.values[name]
        if value is None:
            self.fail(name, "is null", "a value")
        if _is_nothing(value):
            self.fail(name, "is empty", "a value")
        return value

    def number(self, name: str) -> float:
        """A finite number; true is 1 and false is 0, and a table's text is read as the number it spells."""
        value = self.require(name)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.fail(name, f"is {value!r}, not a number", "a number")
        if not isinstance(value, int | float):
            self.fail(name, f"is {_a(value)}, not a number", "a number")
        if not math.isfinite(value):
            self.fail(name, f"is {value}", "a finite number, or null where there is none")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def messages(self, name: str) -> Prompt:
        """A message list ({"role": ..., "content": ...} each) as messages."""
        value = self.require(name)
        if not isinstance(value, list):
            self.fail(name, f"is {_a(value)}, not a list of messages", "a list of messages")
        return tuple(self._message(name, item) for item in value)

    def rows(self, name: str) -> tuple[Row, ...]:
        """A list of objects in a column, each to be asked like a row; none if there is nothing."""
        if not self.has(name):
            return ()
        value = self.values[name]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fail(name, f"is {_a(value)}, not a list of objects", "a list of objects")
        return tuple(Row(item, self.origin, self.source, self.counts) for item in value)

    def prompt(self, *names: str) -> Prompt:
        """The prompt in a column: messages, a transcript, or plain text, which becomes one user turn.

        Without names, the column is `prompt`.
        """
        names = names or ("prompt",)
        name = next((name for name in names if self.has(name)), names[0])
        value = self.require(name)
        if isinstance(value, list):
            return self.messages(name)
        text = self.text(name)
        if is_transcript(text):
            turns = transcript(text, HH_TURN)
            if len(turns) > 1 and turns[-1] == Message("assistant", ""):  # the cue for the response
                turns = turns[:-1]
            return turns
        if HELPSTEER_TURN.search(text):
            return transcript("\n<extra_id_1>User\n" + text, HELPSTEER_TURN)
        return (Message("user", text),)

    def drop(self, reason: str) -> None:
        """Count something that this row said and no record carries."""
        self.counts.drop(reason, self.origin)

    def note(self, reason: str) -> None:
        """Count something that was read differently from how it was written."""
        self.counts.note(reason, self.origin)

    def fail(self, name: str, what: str, expected: str, remedy: str = "mend the value or remove the row") -> NoReturn:
        """Raise the `DataError` of a column of this row."""
        raise DataError(
            f"column {name!r} {what}", where=f"{self.origin}, column {name!r}", expected=expected, remedy=remedy
        )

    def _message(self, name: str, item: Any) -> Message:
        if not isinstance(item, dict) or not isinstance(item.get("role"), str) or "content" not in item:
            self.fail(name, f"holds {_a(item)} that is not a message", 'messages {"role": ..., "content": ...}')
        content = item["content"]
        if isinstance(content, list):  # content in parts, as for models that also take images
            if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
                self.fail(name, "has a message with something that is not text", "messages of text alone")
            content = "".join(part["text"] for part in content)
        if content is not None and not isinstance(content, str):
            self.fail(name, f"has a message whose content is {_a(content)}, not text", "messages of text")
        return Message(item["role"], self._encodable(name, content or ""))

    def _encodable(self, name: str, text: str) -> str:
        if not text.isascii() and (surrogate := find_surrogate(text)):
            self.fail(name, f"contains {surrogate}", "valid Unicode text")
        return text


def is_transcript(value: Any) -> bool:
    """Whether a value is an HH transcript: text that begins with a Human turn and has an Assistant turn."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(text: str, turn: re.Pattern[str]) -> Prompt:
    """Split a transcript at its turn marks; white space around a turn belongs to the mark."""
    if turn is HH_TURN:
        text = "\n\n" + text.lstrip()
    marks = list(turn.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message(TURN_ROLES[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)
    )


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def _is_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def _a(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
