"""Two simulated users who ask about short notes and want different answers: the users of `data/notes`.

Both want the right value most. A response without it is worth at most `MOST_WITHOUT_ANSWER`, regardless of style. With
it, style decides between 0.5 and 1. Each part is scored from 0 to 1:

| part | the plain user | the thorough user |
|---|---|---|
| answer | the right value and no other value of its type; a denial does not count | the same |
| length | at most two sentences | three to five sentences |
| opening | no filler such as "Sure!" | no filler |
| form | no list, heading or bold text | a list when it names three things or more |
| close | ends on a friendly word | no small talk at the end |
| source | - | says where in the note the answer stands, or quotes it |

`NoteUser.gold` is for labels and for measuring policies; training never sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.simulated import note_words
from rrm_lm.simulated.note_words import NoteJudgement
from rrm_lm.simulated.plain_user import PlainUser, Request, judge
from rrm_lm.simulated.requester import Requester
from rrm_lm.simulated.values import KINDS, counts, mentions, states

MOST_WITHOUT_ANSWER = 0.3
WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "plain": {"length": 0.35, "opening": 0.2, "form": 0.2, "close": 0.25},
    "thorough": {"length": 0.3, "opening": 0.15, "form": 0.15, "close": 0.1, "source": 0.3},
}
_PLAIN_LENGTH = {1: 1.0, 2: 1.0, 3: 0.6, 4: 0.3}
_THOROUGH_LENGTH = {1: 0.2, 2: 0.6, 3: 1.0, 4: 1.0, 5: 1.0, 6: 0.6, 7: 0.3}
_QUOTATION = re.compile(r"[\"“']([^\"“”']{12,})[\"”']")
# "It is in room 7. Good luck!" has two sentences, though "7. Good" looks like an item of a list.
_NUMBER_AT_END = re.compile(r"(?<=[a-z] \d)\. (?=[A-Z])|(?<=[a-z] \d\d)\. (?=[A-Z])")
_LOCATION = re.compile(
    r"\b(?:first|second|third|fourth|last|opening|final|next|same)\s+(?:sentence|line|part|half|words)\b"
    r"|\b(?:beginning|start|end|middle|top|bottom)\s+of\s+(?:the|your|this)\s+\w+|\bsentence\s+(?:about|on)\b",
    re.IGNORECASE,
)
_MENTION_OF_NOTE = re.compile(
    r"\b(?:according to|as (?:stated|said|written|mentioned) in|(?:it )?says in|in)\s+(?:the|your|this)\s+"
    r"(?:note|message|notice|text|timetable|recipe|rules|minutes)\b"
    r"|\b(?:the|your|this) (?:note|message|notice|text|timetable|recipe|minutes) "
    r"(?:says|states|mentions|gives|tells)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NoteRequest:
    """A question about a note."""

    text: str  # the user turn: the note and the question
    note: str
    question: str  # the question or small task
    kind: str  # the type of the value that is asked for (`values.KINDS`)
    value: str  # the right value
    others: tuple[str, ...]  # wrong values of the same type
    topic: str = ""  # for example "garden"


class NoteUser(Requester[NoteRequest]):
    """One of the two users: an overseer (`overseers.Overseer`) of responses to questions about notes. `manner` is
    "plain" or "thorough". If the gold rewards of two responses differ by less than `tie`, neither is preferred. Raises
    ConfigError for an unknown manner.
    """

    limit = "knows only what the note says"

    def __init__(self, requests: Iterable[NoteRequest], manner: str = "plain", tie: float = 0.02) -> None:
        if manner not in WEIGHTS:
            raise ConfigError(f"There is no user of notes called {manner!r}", expected=" or ".join(WEIGHTS))
        super().__init__(requests, tie)
        self.manner = manner
        self.weights = {"answer": 1.0, **WEIGHTS[manner]}  # a right answer outweighs everything else
        self.parts = tuple(self.weights)
        self.name = f"{manner} user of notes"

    @classmethod
    def from_file(cls, path: str | Path, manner: str = "plain", limits: ReadLimits | None = None) -> NoteUser:
        """Read the questions from JSON lines (`data/notes/train_questions.jsonl.gz`). Raises DataError if a row is not
        such a question, or its right and wrong values overlap.
        """
        return cls([request_of(entry, f"{path}, row {row}") for row, entry in read_rows(Path(path), limits)], manner)

    def judge(self, prompt: Prompt | str, response: str) -> NoteJudgement:
        return judge_note_response(self.request(prompt), response, self.manner)

    def weight(self, part: str) -> float:
        """How much a part may add to gold when the answer is right; 0.5 for the answer."""
        return 0.5 * WEIGHTS[self.manner].get(part, 1.0)

    def critique(self, prompt: Prompt | str, response: str, seed: int = 0) -> str:
        """A critique of a response. Equal seeds give equal words."""
        key = f"{self.manner}|{seed}|{self.request(prompt).text}|{response}"
        return note_words.critique(self.judge(prompt, response), self.manner, key)


def judge_note_response(request: NoteRequest, response: str, manner: str) -> NoteJudgement:
    """Judge a response part by part (see the module's docstring)."""
    text = response.strip()
    seen = judge(Request(request.text, ()), _NUMBER_AT_END.sub(".\n", text))
    parts = {
        "answer": float(answers(request, text)),
        "length": _length(manner, seen.sentences, seen.words) if text else 0.0,
        "opening": seen.parts["opening"] if text else 0.0,
        "form": _form(manner, text, seen.items, seen.parts["prose"]) if text else 0.0,
        "close": (float(bool(seen.close)) if manner == "plain" else float(not seen.close)) if text else 0.0,
    }
    if manner == "thorough":
        parts["source"] = _source(request.note, text)
    manners = sum(weight * parts[part] for part, weight in WEIGHTS[manner].items())
    gold = 0.5 + 0.5 * manners if parts["answer"] else MOST_WITHOUT_ANSWER * manners
    given = next((value for value in request.others if states(text, request.kind, value)), "")
    return NoteJudgement(parts, round(gold, 6), seen.sentences, given, seen.opening, seen.close)


def answers(request: NoteRequest, response: str) -> bool:
    """Whether a response states the right value and no other value of that type from the note.

    A denied value does not count. Stating both values, or copying the whole note, is not an answer; nor is a number
    among others that the note does not contain.
    """
    if any(states(response, request.kind, other) for other in request.others):
        return False
    if request.kind == "count" and not counts(response) <= counts(request.text) | {1}:
        return False
    return states(response, request.kind, request.value)


def _length(manner: str, sentences: int, words: int) -> float:
    if manner == "plain":
        return _PLAIN_LENGTH.get(sentences, 0.0 if sentences else 1.0) * min(1.0, 40 / max(words, 1))
    return _THOROUGH_LENGTH.get(sentences, 0.0) * min(1.0, 120 / max(words, 1))


def _form(manner: str, text: str, items: int, prose: float) -> float:
    if manner == "plain":
        return prose
    enumerated = re.search(r"(?:\w[^,.!?\n]*,\s){2,}(?:and|or)\s\w", text) is not None
    return 0.0 if enumerated and items < 2 else 1.0


def _source(note: str, text: str) -> float:
    spoken = " ".join(note.lower().split())
    quotes = (" ".join(quote.lower().split()).strip(" .,") for quote in _QUOTATION.findall(text))
    if _LOCATION.search(text) or any(len(quote.split()) >= 3 and quote in spoken for quote in quotes):
        return 1.0
    return 0.5 if _MENTION_OF_NOTE.search(text) else 0.0


def request_of(entry: Mapping[str, object], where: str) -> NoteRequest:
    try:
        request = NoteRequest(
            text=str(entry["prompt"]),
            note=str(entry["note"]),
            question=str(entry["question"]),
            kind=str(entry["kind"]),
            value=str(entry["value"]),
            others=tuple(entry["others"]),  # type: ignore[arg-type]
            topic=str(entry.get("topic", "")),
        )
    except (KeyError, TypeError) as error:
        expected = '{"prompt": ..., "note": ..., "question": ..., "kind": ..., "value": ..., "others": [...]}'
        raise DataError(f"A question about a note cannot be read ({error})", where=where, expected=expected) from error
    if request.kind not in KINDS:
        raise DataError(f"A value of unknown kind {request.kind!r}", where=where, expected=" or ".join(KINDS))
    overlaps = [
        o
        for o in request.others
        if mentions(o, request.kind, request.value) or mentions(request.value, request.kind, o)
    ]
    if overlaps:
        what = f"The right value {request.value!r} and the wrong value {overlaps[0]!r} overlap"
        raise DataError(what, where=where, remedy="change one of them, so that no answer is both right and wrong")
    missing = [value for value in (request.value, *request.others) if not mentions(request.note, request.kind, value)]
    if missing:
        raise DataError(f"The note does not contain the value {missing[0]!r}", where=where)
    return request


SimulatedUser = PlainUser | NoteUser


def load_user(name: str, limits: ReadLimits | None = None) -> SimulatedUser | None:
    """Load the user of a file of requests; None if the file does not exist. `name` is a file of requests as in
    `data/assistant/requests.jsonl` (`PlainUser`) or of questions about notes as in `data/notes` (`NoteUser`);
    `FILE:thorough` selects the thorough note user. Raises DataError for a row that is not such a request.
    """
    path, _, manner = (
        name.rpartition(":") if name.endswith(tuple(f":{manner}" for manner in WEIGHTS)) else (name, "", "")
    )
    file = Path(path).expanduser()
    if not file.is_file():
        return None
    first = next((entry for _, entry in read_rows(file, limits)), {})
    if manner or "note" in first:
        return NoteUser.from_file(file, manner or "plain", limits)
    return PlainUser.from_file(file, limits)
