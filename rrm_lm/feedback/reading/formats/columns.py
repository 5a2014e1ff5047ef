"""The columns of a file: their contents, their aliases of our names, and columns that are not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats.responses import verdict_rating
from rrm_lm.feedback.reading.formats.row import FALSE, TRUE, as_number, is_nothing
from rrm_lm.feedback.reading.formats.structure import ROLE_NAMES, is_message, is_transcript, split_name

IGNORE = "ignore"  # target of --columns for a column that is dropped on purpose
SAMPLE = 200  # rows compared to find columns that repeat others
SCALES = ((0, 1), (-1, 1), (1, 5), (0, 5), (1, 7), (1, 10), (0, 10), (0, 100))

YES_NO = {*TRUE, *FALSE} - {"0", "1", "0.0", "1.0"}
SPOKEN_TO = re.compile(r"\s*(?:You are|You're|Act as|Your (?:task|role|name) is)\b", re.IGNORECASE)

# Other names of our columns. One is used if our name is missing and no other alias is present.
ALIASES: dict[str, tuple[str, ...]] = {
    ours: tuple(theirs.split())
    for ours, theirs in {
        "chosen": "chosen_response response_chosen chosen_answer answer_chosen accepted accepted_response "
        "better_response good_response response_j",
        "rejected": "rejected_response response_rejected rejected_answer answer_rejected rejected_messages "
        "worse_response bad_response response_k",
        "prompt": "question instruction query request input user_prompt user_input user_query user_message problem "
        "history context",
        "system": "system_prompt system_message system_instruction sys_prompt",
        "tools": "functions available_tools tool_definitions",
        "messages": "conversations conversation dialogue dialog",
        "completion": "output answer reply",
        "label": "labels",
        "rating": "score stars helpfulness",
        "chosen_rating": "chosen-rating chosen_score chosen_avg_rating",
        "rejected_rating": "rejected-rating rejected_score rejected_avg_rating",
    }.items()
}


# Words of columns that count or identify: their few different numbers are not judgments.
COUNTS = (
    "id ids index idx number num no n count turn turns round epoch split version seed year month day time timestamp "
    "date length len tokens token words chars level depth step position rank order group cluster fold batch size row"
)
# Words of columns whose short texts are not prompts.
NAMES = COUNTS + " model language lang url uuid hash source author annotator user tag tags type kind"


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

    def words(self, name: str) -> list[int]:
        """The number of words in each of the first cells; of a cell with several texts, in the longest one."""
        texts = (texts_in(value) for value in islice(self.values(name), SAMPLE))
        return [max(len(text.split()) for text in cell) for cell in texts if cell]

    def is_prose(self, name: str) -> bool:
        """Whether a column holds texts of three words or more on average, or conversations."""
        words = self.words(name)
        return self.kinds.get(name) in ("messages", "transcript") or sum(words) >= max(1, 3 * len(words))

    def is_long(self, name: str, words: int) -> bool:
        """Whether a column has texts of at least this many words on average, and most of them differ."""
        counts = self.words(name) if self.kinds.get(name) == "text" else []
        texts = set(islice(self.values(name), SAMPLE)) if counts and sum(counts) >= words * len(counts) else ()
        return 2 * len(texts) > len(counts)

    def is_short_text(self, name: str) -> bool:
        """Whether most texts of a column differ and look like words, not like names or numbers."""
        values = list(islice(self.values(name), SAMPLE)) if self.kinds.get(name) == "text" else []
        said = [value for value in values if not re.fullmatch(r"[\w.:/@-]*\d[\w.:/@-]*", str(value).strip())]
        return len(set(map(str, said))) > max(2, len(values) / 2) and not words_of(name) & set(NAMES.split())

    def is_system(self, name: str) -> bool:
        """Whether most texts of a column speak to an assistant about its role."""
        begins = [bool(SPOKEN_TO.match(str(value))) for value in islice(self.values(name), SAMPLE)]
        return self.kinds.get(name) == "text" and 2 * sum(begins) > len(begins)

    def names_sides(self, name: str) -> bool:
        """Whether a column says of some rows that the rejected response is better."""
        values = {str(value).strip().lower() for value in islice(self.values(name), 10_000)}
        return "rejected" in values and values <= {"chosen", "rejected", "tie", "both", "neither"}

    def varies(self, name: str) -> bool:
        """Whether a column has two different values, or is empty in some rows."""
        different = {str(value) for value in islice(self.values(name), 10_000)}
        return len(different) > 1 or 0 < self.share(name) < 1

    def judges(self, name: str) -> bool:
        """Whether a column's values look like judgments: booleans, known words such as good and bad, or few numbers."""
        values = [value for value in islice(self.values(name), 10_000) if not isinstance(value, list | dict)]
        different = {str(value) for value in values}
        if not 2 <= len(different) + (self.share(name) < 1) <= 11:
            return False
        if all(isinstance(value, bool) or str(value).lower() in YES_NO for value in values):
            return True
        if all(verdict_rating(str(value)) is not None for value in values if as_number(value) is None) and any(
            as_number(value) is None for value in values
        ):
            return True
        return all(as_number(value) is not None for value in values) and not words_of(name) & set(COUNTS.split())


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


def find_aliases(columns: Columns, used: Collection[str], file: str) -> dict[str, str]:
    """Maps their column names to ours. Raises DataError if two non-empty columns could be the same one of ours."""
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
            what = f"several columns could be the {ours}: {', '.join(map(repr, theirs))}"
            remedy = f"say which with --columns {theirs[0]}={ours}, and what the others are, or {IGNORE}"
            raise DataError(what, where=file, expected="one of them", remedy=remedy)
        if ours == "prompt" and not theirs and {"chosen", "rejected"} <= {*columns.kinds, *found.values()}:
            theirs = [name for name in ("messages", *ALIASES["messages"]) if columns.hold("messages", name)]
            if not all(is_prompt(value) for name in theirs for value in islice(columns.values(name), SAMPLE)):
                theirs = []
        if ours == "messages":
            theirs = [name for name in theirs if columns.hold("messages", name)]
        if ours == "rating" and theirs and columns.hold("objects", *theirs):
            continue
        if ours == "rating" and not theirs and not columns.have_any("label", "verdict", "critique"):
            theirs = ["feedback"] if columns.hold("number", "feedback") or columns.judges("feedback") else []
        if ours in ("chosen", "rejected"):
            theirs = [name for name in theirs if columns.kinds[name] in ("text", "messages", "transcript")]
        if len(theirs) == 1:
            found[theirs[0]] = ours
    alone = "rejected" not in {*columns.kinds, *found.values()}
    return {theirs: ours for theirs, ours in found.items() if not (alone and ours == "chosen")}


def texts_in(value: Any) -> list[str]:
    """All texts of a cell; for messages, their contents; for other objects, their values."""
    if isinstance(value, str):
        return [value]
    if is_message(value):
        return texts_in(value.get("content", value.get("value")))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in texts_in(item)]
    return []


def words_of(name: str) -> set[str]:
    return set(split_name(name))


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
