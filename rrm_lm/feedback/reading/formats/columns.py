"""The columns of a file: their contents, their aliases of our names, and columns that are not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats.responses import verdict_rating
from rrm_lm.feedback.reading.formats.row import as_number, is_nothing
from rrm_lm.feedback.reading.formats.structure import ROLE_NAMES, is_message, is_transcript, parse_cell

IGNORE = "ignore"  # target of --columns for a column that is dropped on purpose
SAMPLE = 200  # rows compared to find columns that repeat others
SCALES = ((0, 1), (-1, 1), (1, 5), (0, 5), (1, 7), (1, 10), (0, 10), (0, 100))

# Other names of our columns. One is used if our name is missing and no other alias is present.
ALIASES: dict[str, tuple[str, ...]] = {
    ours: tuple(theirs.split())
    for ours, theirs in {
        "prompt": "question instruction query request input user_prompt user_input user_query user_message problem "
        "history context",
        "system": "system_prompt system_message system_instruction sys_prompt",
        "tools": "functions available_tools tool_definitions",
        "messages": "conversations conversation dialogue dialog",
        "completion": "output answer reply",
        "label": "labels",
        "rating": "score stars",
        "chosen_rating": "chosen-rating chosen_score chosen_avg_rating",
        "rejected_rating": "rejected-rating rejected_score rejected_avg_rating",
    }.items()
}


@dataclass(frozen=True)
class Meaning:
    """The meaning of an unread column with this name. `refused`: names that make it an error."""

    words: frozenset[str]
    what: str
    target: str
    refused: frozenset[str] = frozenset()


def _meaning(words: str, what: str, target: str, refused: str = "") -> Meaning:
    return Meaning(frozenset(words.split()), what, target, frozenset(refused.split()))


MEANINGS = (
    _meaning("system persona role", "a system message", "system", "system " + " ".join(ALIASES["system"])),
    _meaning(
        "tools tool functions function", "the tools of the prompt", "tools", "tools " + " ".join(ALIASES["tools"])
    ),
    _meaning(
        "label labels score scores rating ratings reward quality grade stars preference preferred winner verdict vote "
        "votes thumb thumbs like liked correct helpful approved accepted good bad safe harmful toxic judgment",
        "a judgment of the response",
        "rating",
        "label labels score rating stars reward quality grade preference winner verdict",
    ),
    _meaning(
        "question instruction input query request conversation conversations messages history context document passage",
        "a part of the prompt",
        "prompt",
        "question instruction input conversations conversation messages history context",
    ),
    _meaning(
        "reasoning thinking thoughts thought rationale cot", "the reasoning of the response", "", "reasoning thinking"
    ),
    _meaning("image images video audio", "pictures or sound, which no text shows", "", "image images video audio"),
    _meaning("response completion output answer reply", "a response", "completion", "response completion"),
)


class Columns:
    """The columns of a file and their contents.

    `kinds` maps each column to the kind of its first non-empty value: "messages", "texts", "objects", "transcript",
    "text", "flag", "number" or "other"; "nothing" if all are empty.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows
        self.kinds: dict[str, str] = {}
        self.filled: dict[str, int] = {}
        for row in rows:
            for name, value in row.items():
                if is_nothing(value):
                    self.kinds.setdefault(name, "nothing")
                    continue
                self.filled[name] = self.filled.get(name, 0) + 1
                if self.kinds.get(name, "nothing") == "nothing":
                    self.kinds[name] = _kind(value)

    def have(self, *names: str) -> bool:
        return all(name in self.kinds for name in names)

    def have_any(self, *names: str) -> bool:
        return any(name in self.kinds for name in names)

    def hold(self, kind: str, *names: str) -> bool:
        return all(self.kinds.get(name) == kind for name in names)

    def share(self, name: str) -> float:
        """The share of rows in which a column is not empty."""
        return self.filled.get(name, 0) / max(1, len(self.rows))

    def values(self, name: str) -> Iterable[Any]:
        return (row[name] for row in self.rows if not is_nothing(row.get(name)))

    def is_prose(self, name: str) -> bool:
        """Whether a column holds texts of three words or more on average, or conversations."""
        if self.kinds.get(name) in ("messages", "transcript"):
            return True
        words = [len(value.split()) for value in islice(self.values(name), SAMPLE) if isinstance(value, str)]
        return self.kinds.get(name) == "text" and sum(words) >= 3 * max(1, len(words))

    def varies(self, name: str) -> bool:
        """Whether a column has two different values, or is empty in some rows."""
        different = {str(value) for value in islice(self.values(name), 10_000)}
        return len(different) > 1 or 0 < self.share(name) < 1

    def judges(self, name: str) -> bool:
        """Whether a column's values look like judgments: booleans, known words such as good and bad, or few numbers."""
        values = [value for value in islice(self.values(name), 10_000) if not isinstance(value, list | dict)]
        different = {str(value) for value in values}
        if not 2 <= len(different) <= 11:
            return False
        if all(isinstance(value, bool) or str(value).lower() in ("true", "false", "yes", "no") for value in values):
            return True
        if all(verdict_rating(str(value)) is not None for value in values if as_number(value) is None) and any(
            as_number(value) is None for value in values
        ):
            return True
        return all(as_number(value) is not None for value in values) and not _words(name) & COUNTS


_COUNTS = """
    id ids index idx number num no n count turn turns round epoch split version seed year month day time timestamp date
    length len tokens token words chars level depth step position rank order group cluster fold batch size row
"""
COUNTS = frozenset(_COUNTS.split())


def scale_of(columns: Columns, names: Sequence[str]) -> tuple[float, float] | None:
    """The scale of ratings outside [0, 1]: the smallest common scale that contains them all, else their own range.

    None if more than 90% are in [0, 1] (the others are then errors), or if there are fewer than two different values.
    """
    values = [number for name in names for value in columns.values(name) if (number := as_number(value)) is not None]
    values = [value for value in values if abs(value) < float("inf")]
    inside = sum(0 <= value <= 1 for value in values)
    if len(set(values)) < 2 or inside == len(values) or (inside > 0.9 * len(values)):
        return None
    low, high = min(values), max(values)
    return next((scale for scale in SCALES if scale[0] <= low and high <= scale[1]), (low, high))


def is_prompt(messages: Any) -> bool:
    """Whether a list of messages does not end with an assistant turn."""
    last: Any = messages[-1] if isinstance(messages, list) and messages else None
    return is_message(last) and ROLE_NAMES.get(last.get("role", last.get("from"))) != "assistant"


def is_document(columns: Columns, name: str) -> bool:
    """Whether a column that should hold short names holds long texts that differ between rows."""
    values = [value for value in islice(columns.values(name), SAMPLE) if isinstance(value, str)]
    return bool(values) and sum(len(value.split()) for value in values) > 5 * len(values) < 10 * len(set(values))


def prepare_cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which message lists that were written as text are parsed."""
    return [{name: parse_cell(value) for name, value in row.items()} for row in rows]


def find_aliases(columns: Columns, used: Collection[str], file: str) -> dict[str, str]:
    """Maps their column names to ours.

    Raises:
        DataError: Two non-empty columns could be the same one of ours.
    """
    found: dict[str, str] = {}
    for ours, names in ALIASES.items():
        if columns.kinds.get(ours, "nothing") != "nothing":
            continue
        taken = {*used, *found}
        theirs = [name for name in names if columns.kinds.get(name, "nothing") != "nothing" and name not in taken]
        if ours == "prompt" and {"instruction", "input"} <= set(theirs):
            theirs.remove("input")  # Alpaca's: it follows the instruction
        if ours == "prompt" and len(theirs) > 1:
            theirs = [name for name in theirs if name not in ("history", "context")]  # parts of the prompt
        if len(theirs) > 1 and ours in ("prompt", "system"):
            raise DataError(
                f"several columns could be the {ours}: {', '.join(map(repr, theirs))}",
                where=file,
                expected="one of them",
                remedy=f"say which with --columns {theirs[0]}={ours}, and what the others are, or {IGNORE}",
            )
        if ours == "prompt" and not theirs and columns.have("chosen", "rejected"):
            theirs = [name for name in ("messages", *ALIASES["messages"]) if columns.hold("messages", name)]
            if not all(is_prompt(value) for name in theirs for value in islice(columns.values(name), SAMPLE)):
                theirs = []
        if ours == "messages":
            theirs = [name for name in theirs if columns.hold("messages", name)]
        if ours == "rating" and columns.hold("objects", *theirs):
            continue
        if len(theirs) == 1:
            found[theirs[0]] = ours
    return found


def name_unread(columns: Columns, read: Collection[str], *, demonstrations: bool, file: str) -> list[str]:
    """Report each unread column and its likely meaning, one line each.

    Raises:
        DataError: An unread column would change what is learned.
    """
    unread: list[str] = []
    for name in columns.kinds:
        if name in read or columns.kinds[name] == "nothing":
            continue
        if name == "" or re.fullmatch(r"Unnamed: \d+|index|__index_level_\d+__", name):
            unread.append(f"{name!r} (an index)")
            continue
        meaning = next((known for known in MEANINGS if name.lower() in known.refused), None)
        meaning = meaning or next((known for known in MEANINGS if _words(name) & known.words), None)
        judges = meaning is MEANINGS[2]
        refused = meaning is not None and name.lower() in meaning.refused
        if judges and not columns.varies(name):
            refused = False
        if demonstrations and not refused and columns.judges(name):
            refused, meaning = True, MEANINGS[2]
        if not refused and (meaning is None or meaning is MEANINGS[-1]) and not columns.is_prose(name):
            unread.append(repr(name))
            continue
        if _repeats(columns, name, read):
            unread.append(f"{name!r} (repeats columns that are read)")
            continue
        what = meaning.what if meaning is not None else "text"
        target = meaning.target if meaning is not None else "prompt"
        share = f"in {100 * columns.share(name):.0f}% of rows"
        if refused:
            ways = f"--columns {name}={target}, or " if target else ""
            raise DataError(
                f"the column {name!r} is not read with these columns and seems to be {what} ({share})",
                where=file,
                expected="columns that are read: " + ", ".join(sorted(map(repr, set(read) & set(columns.kinds)))),
                remedy=f"say what it is ({ways}--columns {name}={IGNORE} to leave it aside), or remove it",
            )
        advice = f"; if it matters, name it: --columns {name}={target}" if target else ""
        unread.append(f"{name!r} ({what}, {share}{advice})")
    return unread


def refuse_other_text(columns: Columns, read: Collection[str], file: str) -> None:
    """Raise a DataError if a file without a prompt has another text column, which is probably part of the prompt."""
    others = [
        name
        for name in columns.kinds
        if name not in read
        and (name.lower() == "prompt" or columns.is_prose(name))
        and not _repeats(columns, name, read)
    ]
    if others:
        nearest = next((name for name in others if name.lower() == "prompt"), others[0])
        raise DataError(
            f"there is no prompt column, and other columns hold text: {', '.join(map(repr, others))}",
            where=file,
            expected="the prompt in a column named prompt, or no text but chosen and rejected, which begin with it",
            remedy=f"did you mean --columns {nearest}=prompt? To ignore the column: --columns {nearest}={IGNORE}",
        )


def _repeats(columns: Columns, name: str, read: Collection[str]) -> bool:
    """Whether the columns that are read contain all texts of a column."""
    checked = 0
    for row in islice((row for row in columns.rows if not is_nothing(row.get(name))), SAMPLE):
        known = "\n".join(text for other in read for text in texts_in(row.get(other)))
        texts = [text for text in texts_in(row[name]) if text.strip()]
        if not texts or any(text.strip() not in known for text in texts):
            return False
        checked += 1
    return checked > 0


def texts_in(value: Any) -> list[str]:
    """All texts of a cell; for messages, their contents."""
    if isinstance(value, str):
        return [value]
    if is_message(value):
        return texts_in(value.get("content", value.get("value")))
    if isinstance(value, list):
        return [text for item in value for text in texts_in(item)]
    return []


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", name)
    return {word for word in re.split(r"[\W_]+", spaced.lower()) if word}


def _kind(value: Any) -> str:
    if isinstance(value, list):
        if isinstance(value[0], dict):
            return "messages" if is_message(value[0]) else "objects"
        return "texts" if isinstance(value[0], str) else "other"
    if isinstance(value, str):
        return "transcript" if is_transcript(value) else "text"
    if isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, int | float) else "other"
