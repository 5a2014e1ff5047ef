"""Frozen records for each kind of feedback. Preference direction is defined only here.

`margin = reward(chosen) - reward(rejected)`: positive means the chosen response wins, everywhere in the project.
Records are validated when they are created, so a response is never empty.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
TOOLS = "tools"  # role of a first message that lists the tools of the conversation, as JSON


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: One of `ROLES`, or `TOOLS`.
        content: Plain text, never control tokens.
        extra: A JSON object with the other fields of the turn (tool_calls, name, reasoning_content ...), or "".
    """

    role: str
    content: str
    extra: str = ""

    @classmethod
    def from_dict(cls, turn: Mapping[str, Any]) -> Message:
        """The inverse of `to_dict`."""
        extra = {name: value for name, value in turn.items() if name not in ("role", "content") and value is not None}
        text = json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else ""
        return cls(str(turn["role"]), str(turn["content"]), text)

    def to_dict(self) -> dict[str, Any]:
        """The turn as a dict for chat templates."""
        return {"role": self.role, "content": self.content, **(json.loads(self.extra) if self.extra else {})}


Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record came from: a file (or `hub set[split]`) and its row, counted from 1."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


def prompt_id(prompt: Prompt) -> str:
    """Identify a prompt by its first user turn, so that all rows about one request are on the same side of a split.

    The first 16 hexadecimal digits of the SHA-256 of the first user turn, stripped and lower-cased. Later turns do not
    count: two branches of one conversation share the identifier. An empty prompt (a goal example) gives "".
    """
    for message in prompt:
        if message.role == "user":
            return hashlib.sha256(message.content.strip().lower().encode()).hexdigest()[:16]
    return ""


def find_surrogate(text: str) -> str:
    """Describe the first unpaired surrogate in a text, which files and tokenizers cannot encode; "" if none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is not a character"
    return ""


def check_prompt(prompt: Prompt, origin: Origin) -> None:
    """Raise a DataError unless a prompt has known roles, a user turn with text, and a user or tool turn at the end, and
    lists its tools and tool calls.
    """
    for place, message in enumerate(prompt):
        if message.role not in ROLES and (message.role != TOOLS or place > 0):
            what = f"unknown role {message.role!r} in the prompt"
            remedy = "rename the role, for example human to user and gpt to assistant"
            raise DataError(what, where=str(origin), expected="one of " + ", ".join(ROLES), remedy=remedy)
        if (message.role == TOOLS and not _is_list(message.content)) or (
            message.extra and not isinstance(message.to_dict().get("tool_calls", []), list)
        ):
            what = f"the {message.role} turn has tools that are not a JSON list"
            expected, remedy = "a list of tools, or of tool calls", "fix the value or remove the row"
            raise DataError(what, where=str(origin), expected=expected, remedy=remedy)
    if not any(message.role == "user" and message.content.strip() for message in prompt):
        what = "the prompt has no user turn with text in it"
        remedy = "add the user's request to the prompt or remove the row"
        raise DataError(what, where=str(origin), expected="at least one message with role user", remedy=remedy)
    if prompt[-1].role not in ("user", "tool"):
        what = f"the prompt ends with the turn of role {prompt[-1].role}, so there is nothing to respond to"
        remedy = "move the last assistant turn into the response or remove the row"
        raise DataError(what, where=str(origin), expected="a last turn by the user or a tool", remedy=remedy)


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


# The fields that a record checks, and their names in messages: texts, and numbers from 0 to 1.
_TEXTS = {
    "chosen": "chosen response",
    "rejected": "rejected response",
    "response": "response",
    "critique": "critique",
    "chosen_critiques": "critique",
    "rejected_critiques": "critique",
    "corrected": "corrected response",
    "example": "goal example",
}
_RATINGS = {
    "rating": "rating",
    "chosen_rating": "rating of the chosen response",
    "rejected_rating": "rating of the rejected response",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Feedback:
    """Fields of every record: the prompt and the origin."""

    prompt: Prompt
    source: str = ""
    subset: str = ""
    origin: Origin

    def __post_init__(self) -> None:
        if self.prompt or not isinstance(self, GoalExample):
            check_prompt(self.prompt, self.origin)
        where = str(self.origin)
        for field, name in _TEXTS.items():
            value = getattr(self, field, None)
            if not all(text.strip() for text in (value if isinstance(value, tuple) else (value,)) if text is not None):
                expected, remedy = f"a {name} with text in it", "fill it in or remove the row"
                raise DataError(f"the {name} is empty", where=where, expected=expected, remedy=remedy)
        for field, name in _RATINGS.items():
            value = getattr(self, field, None)
            if value is not None and not 0.0 <= value <= 1.0:
                expected, remedy = "a number from 0 (worst) to 1 (best)", "correct the value or rescale the column"
                raise DataError(f"the {name} is {value}", where=where, expected=expected, remedy=remedy)

    @property
    def prompt_id(self) -> str:
        """The identifier that splits use; see `prompt_id`."""
        return prompt_id(self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(_Feedback):
    """Two responses to a prompt. The overseer preferred `chosen` to `rejected`.

    Attributes:
        margin: How much better chosen is according to the overseer, at least 0, in the source's units; None if not
            graded.
        chosen_critiques, rejected_critiques: Critiques of each response.
        chosen_rating, rejected_rating: Ratings scaled to [0, 1].
        source, subset: For example "rewardbench" and "alpacaeval-easy".
        group: Shared by the comparisons of one best-of-n, ties or 3 x 3 item; "" for a plain pair.
        styles: RM-Bench only: (style of chosen, style of rejected); 0 concise, 1 detailed plain text, 2 markdown.
    """

    chosen: str
    rejected: str
    margin: float | None = None
    chosen_critiques: tuple[str, ...] = ()
    rejected_critiques: tuple[str, ...] = ()
    chosen_rating: float | None = None
    rejected_rating: float | None = None
    group: str = ""
    styles: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _Feedback.__post_init__(self)
        if self.chosen == self.rejected:
            what = "the chosen and the rejected response are the same text"
            remedy = "remove the row: identical responses say nothing about what is wanted"
            raise DataError(what, where=str(self.origin), expected="two different responses", remedy=remedy)
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            what = f"the margin is {self.margin}"
            remedy = "swap chosen and rejected if the rejected response was the better one"
            raise DataError(what, where=str(self.origin), expected="a finite number that is at least 0", remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique(_Feedback):
    """Free text about one response. `rating` is in [0, 1]; `verdict` is the overseer's own word, such as "good"."""

    response: str
    critique: str
    rating: float | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating(_Feedback):
    """How good one response is, from 0 (worst on the source's scale) to 1 (best)."""

    response: str
    rating: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration(_Feedback):
    """A response to imitate."""

    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction(_Feedback):
    """A response, an optional critique of it, and its corrected version."""

    response: str
    corrected: str
    critique: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalExample(_Feedback):
    """An example of the wanted outcome. `prompt` may be empty if the goal is not about one request."""

    prompt: Prompt = ()
    example: str


Record = Comparison | Critique | Rating | Demonstration | Correction | GoalExample
KINDS: dict[type, str] = {
    Comparison: "comparisons",
    Critique: "critiques",
    Rating: "ratings",
    Demonstration: "demonstrations",
    Correction: "corrections",
    GoalExample: "goal_examples",
}
