"""One row with checked access to its columns. Errors name the file, row and column."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.formats.structure import (
    ASSISTANT,
    HELPSTEER,
    HUMAN,
    ROLE_NAMES,
    SPEAKERS,
    dialect_of,
    has_turns_inside,
    is_plain_object,
    looks_like_messages,
    parse_literal,
    split_turns,
    strip_turn_end,
)
from rrm_lm.feedback.records import TOOLS, Message, Origin, Prompt, find_surrogate

SUBSETS = ("subset", "domain", "topic", "category")  # the first non-empty one is the subset
EXTRA = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")  # kept with a message
TRUE = frozenset(["true", "yes", "y", "t", "on", "1", "1.0", "ja", "oui", "si", "sí"])
NOTHING = frozenset(["nan", "none", "null", "<na>", "n/a"])  # what programs write into tables for no value
FALSE = frozenset(["false", "no", "n", "f", "off", "0", "0.0", "nein", "non"])


@dataclass
class Table:
    """Properties of a whole file."""

    columns: Collection[str] = ()  # all columns; a row may lack some
    # the range of each column of ratings that are not in [0, 1]
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    repeats_prompt: bool = False  # whether responses usually begin with the prompt's text
    has_speakers: bool = False  # whether prompts usually begin with "Human:" and responses with "Assistant:"
    is_rendered: bool = False  # whether texts usually contain a chat template's turn marks
    # columns with the name of a source or subset that hold long texts, and so name neither
    documents: Collection[str] = ()
    reader: Any = None  # data that a format found in the file for reading its rows


class Row:
    """A row with checked access to its columns. `values` maps columns to values, None for nothing. `source` is used if
    the row names none, and `counts` receives the counts of drops and notes.
    """

    def __init__(
        self, values: dict[str, Any], origin: Origin, source: str, counts: FileCounts, table: Table | None = None
    ) -> None:
        self.values, self.origin, self.counts, self.table = values, origin, counts, table or Table()
        named = [name for name in ("source", *SUBSETS) if name not in self.table.documents]
        self.source = (self.label("source") if "source" in named else "") or source
        self.subset = next(filter(None, (self.label(name) for name in named if name != "source")), "")

    def about(self, prompt: Prompt) -> dict[str, Any]:
        """The fields shared by all records of this row."""
        return {"prompt": prompt, "source": self.source, "subset": self.subset, "origin": self.origin}

    def has(self, *names: str) -> bool:
        """Whether any of the columns is not empty; blank text counts as empty."""
        return any(not is_nothing(self.values.get(name)) for name in names)

    def first(self, *names: str) -> str:
        """The first non-empty column of these, or else the first one that the row has, or else the first one."""
        there = [name for name in names if name in self.values]
        return next((name for name in there if self.has(name)), [*there, *names][0])

    def label(self, name: str) -> str:
        """A short text or number as a name, or ""."""
        value = self.values.get(name)
        return "" if is_nothing(value) or isinstance(value, list | dict) else str(value).strip()

    def text(self, *names: str) -> str:
        """The text of the first non-empty column of these, unchanged. Raises DataError if the column is missing, null,
        empty or not text, or holds a message list that cannot be parsed.
        """
        name = self.first(*names)
        value = self.require(name)
        if not isinstance(value, str):
            self.fail(name, f"is {_a(value)}, not text", "text")
        if looks_like_messages(value) and not is_plain_object(value):
            self.fail(name, "holds a message list as text that cannot be parsed", "a JSON list of messages, or text")
        return self._encodable(name, value)

    def texts(self, *names: str) -> tuple[str, ...]:
        """All texts of these columns, each a text or a list. Blank ones and missing columns are skipped."""
        found: list[str] = []
        for name in names:
            value = self.values.get(name)
            for item in value if isinstance(value, list) else [value]:
                if is_nothing(item):
                    continue
                if not isinstance(item, str):
                    self.fail(name, f"holds {_a(item)}, not text", "text or a list of texts")
                found.append(self._encodable(name, item))
        return tuple(found)

    def require(self, name: str) -> Any:
        """The value of a column that must not be empty."""
        if name not in self.values:
            self.fail(name, "is missing", f"a column {name} in every row")
        value = self.values[name]
        if is_nothing(value):
            self.fail(name, "is null" if value is None else "is empty", "a value")
        return value

    def number(self, name: str) -> float:
        """A finite number. Booleans in any spelling are 1 and 0, and text is read as the number it spells."""
        value = self.require(name)
        number = as_number(value)
        if number is None:
            found = repr(value) if isinstance(value, str) else _a(value)
            self.fail(name, f"is {found}, not a number", "a number")
        if not math.isfinite(number):
            self.fail(name, f"is {number}", "a finite number, or null for none")
        return number

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def optional_rating(self, name: str) -> float | None:
        """A response's rating, scaled to [0, 1]; omitted and noted if its scale is unknown."""
        value = self.optional_number(name)
        if value is None:
            return None
        low, high = self.table.scales.get(name, (0.0, 1.0))
        value = (value - low) / (high - low)
        if not 0.0 <= value <= 1.0:
            self.note(f"{name} is not between {low:g} and {high:g}, so the rating was left out")
            return None
        return value

    def messages(self, name: str) -> Prompt:
        """A list of messages ({"role": ..., "content": ...}, or ShareGPT's {"from": ..., "value": ...})."""
        value = self.require(name)
        if not isinstance(value, list) or any(isinstance(item, str) for item in value):
            found = _a(value) if not isinstance(value, list) else "a list of texts"
            self.fail(name, f"is {found}, not a list of messages", "one text or a list of messages")
        return tuple(self._message(name, item) for item in value)

    def rows(self, name: str) -> tuple[Row, ...]:
        """A list of objects in a column as rows; () if the column is empty."""
        if not self.has(name):
            return ()
        value = self.values[name]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fail(name, f"is {_a(value)}, not a list of objects", "a list of objects")
        return tuple(Row(item, self.origin, self.source, self.counts) for item in value)

    def prompt(self, *names: str) -> Prompt:
        """The prompt in a column (`prompt` without names), after the row's tools and system message.

        Messages and transcripts become turns; plain text becomes one user turn.
        """
        name = self.first(*(names or ("prompt",)))
        value = self.require(name)
        if isinstance(value, dict) and isinstance(text := value.get("full_text", value.get("text")), str):  # WebGPT
            self.values = self.values | {name: text}
        return self.in_context(self.messages(name) if isinstance(value, list) else self._turns(name))

    def in_context(self, prompt: Prompt) -> Prompt:
        """A prompt after the messages of the columns `tools` and `system`."""
        if self.has("system") and self.label("system").lower() not in NOTHING:
            system = Message("system", self.text("system"))
            if not prompt or prompt[0].role != "system":
                prompt = (system, *prompt)
            elif prompt[0].content.strip() != system.content.strip():
                self.fail("system", "differs from the system message of the prompt", "one system message")
        if self.has("tools"):
            tools = self.values["tools"]
            tools = parse_literal(tools) if isinstance(tools, str) else tools
            if not isinstance(tools, list):
                self.fail("tools", f"is {_a(self.values['tools'])}, not a list of tools", "a JSON list of tools")
            if tools:
                prompt = (Message(TOOLS, json.dumps(tools, sort_keys=True, ensure_ascii=False)), *prompt)
        return prompt

    def response(self, name: str, prompt: Prompt) -> str:
        """A response given as text, as a transcript, or as messages that may repeat the prompt."""
        if isinstance(self.values.get(name), list):
            return self.one_response(name, self.after(prompt, self.messages(name)))
        text = self.text(name)
        if self.table.has_speakers and text.lstrip().startswith(ASSISTANT):
            text = text.lstrip().removeprefix(ASSISTANT).strip()
        dialect = dialect_of(text)
        if dialect is not None:
            return self.one_response(name, self.after(prompt, split_turns(text, dialect)))
        text = self.without_prompt(text, prompt)
        stripped = strip_turn_end(text)
        if stripped != text:
            self.note("a response ended with an end-of-turn token, which was removed")
        self._check_marks(name, stripped)
        return stripped

    def after(self, prompt: Prompt, messages: Prompt) -> Prompt:
        """Messages without a repeated prompt, whether or not it includes the system message and tools."""
        spoken = tuple(message for message in prompt if message.role not in ("system", TOOLS))
        for start in (prompt, spoken):
            if start and messages[: len(start)] == start:
                return messages[len(start) :]
        return messages

    def without_prompt(self, text: str, prompt: Prompt) -> str:
        """A response without a repeated prompt, if the file's responses usually begin with the prompt."""
        asked = prompt[-1].content.strip() if prompt else ""
        rest = text.lstrip().removeprefix(asked).strip()
        if not self.table.repeats_prompt or not text.lstrip().startswith(asked) or not rest:
            return text
        self.note("a response began with its prompt, which was removed")
        return rest

    def one_response(self, name: str, messages: Prompt) -> str:
        """The text of the only message of a response."""
        if len(messages) != 1 or messages[0].role != "assistant":
            found = ", ".join(message.role for message in messages) or "no turn"
            self.fail(
                name,
                f"has {found} after the prompt",
                "exactly one turn, by the assistant",
                "chosen and rejected may differ only in the last assistant turn; remove the row if they differ earlier",
            )
        if messages[0].extra:
            fields = " and ".join(json.loads(messages[0].extra))
            self.fail(name, f"is a response with {fields}, which cannot be trained on", "a response of text")
        if not messages[0].content.strip():
            self.fail(name, "ends with an empty response", "a response with text in it", "remove the row")
        return messages[0].content

    def drop(self, reason: str) -> None:
        """Count a part of this row that gives no record."""
        self.counts.drop(reason, self.origin)

    def note(self, reason: str) -> None:
        """Count a value of this row that was converted when read."""
        self.counts.note(reason, self.origin)

    def fail(self, name: str, what: str, expected: str, remedy: str = "fix the value or remove the row") -> NoReturn:
        """Raise a `DataError` about a column of this row."""
        raise DataError(
            f"column {name!r} {what}", where=f"{self.origin}, column {name!r}", expected=expected, remedy=remedy
        )

    def _turns(self, name: str) -> Prompt:
        text = self.text(name)
        dialect = dialect_of(text)
        if dialect is None and self.table.has_speakers and text.lstrip().startswith(HUMAN):
            dialect = SPEAKERS
        if dialect is None and HELPSTEER.mark.search(text):
            return split_turns("\n<extra_id_1>User\n" + text, HELPSTEER)
        if dialect is None:
            self._check_marks(name, text)
            return (Message("user", text),)
        turns = split_turns(text, dialect)
        if len(turns) > 1 and turns[-1] == Message("assistant", ""):  # the cue for the response
            turns = turns[:-1]
        return turns

    def _check_marks(self, name: str, text: str) -> None:
        if has_turns_inside(text):
            if self.table.is_rendered:
                self.fail(name, "contains turn marks of a chat template", "messages, or text without control tokens")
            self.note(f"{name} contains turn marks of a chat template, which were kept as plain text")

    def _message(self, name: str, item: Any) -> Message:
        if isinstance(item, dict) and "role" not in item and isinstance(item.get("from"), str) and "value" in item:
            item = {"role": ROLE_NAMES.get(item["from"], item["from"]), "content": item["value"]}
        is_call = isinstance(item, dict) and item.get("tool_calls")
        is_turn = isinstance(item, dict) and isinstance(item.get("role"), str) and ("content" in item or is_call)
        if not is_turn:
            self.fail(name, f"holds {_a(item)} that is not a message", 'messages {"role": ..., "content": ...}')
        content = item.get("content")
        if isinstance(content, list):  # content in parts, as for multimodal models
            if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
                self.fail(name, "has a message with something that is not text", "messages of text alone")
            content = "".join(part["text"] for part in content)
        extra = {key: item[key] for key in EXTRA if not is_nothing(item.get(key))}
        if content is None and "tool_calls" in extra:
            content = ""
        if not isinstance(content, str):
            self.fail(name, f"has a message whose content is {_a(content)}, not text", "messages of text")
        for key in item.keys() - {"role", "content", *EXTRA}:
            if not is_nothing(item[key]):
                self.note(f"the field {key!r} of messages was not read")
        text = json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else ""
        return Message(item["role"], self._encodable(name, content), self._encodable(name, text))

    def _encodable(self, name: str, text: str) -> str:
        if not text.isascii() and (surrogate := find_surrogate(text)):
            self.fail(name, f"contains {surrogate}", "valid Unicode text")
        return text


def as_number(value: Any) -> float | None:
    """The value of a number, boolean (in any spelling) or numeric text; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE or word in FALSE:
            return float(word in TRUE)
        try:
            return float(word)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float | Decimal) else None


def mean(values: Sequence[float]) -> float | None:
    """The mean; None for an empty sequence."""
    return sum(values) / len(values) if values else None


def is_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def _a(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
