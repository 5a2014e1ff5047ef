"""Items that people are asked about, their answers, and the state: a fold over events, none of which is ever changed.

Kinds of events: `item` (something to ask about), `answer` (a person's whole answer about an item; a later one by the
same person replaces it), `undo` (withdraws one answer of the same person, so that the one before it counts again) and
`retract` (all answers so far by a person, about an item, or both, count no more).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message, Origin, Prompt, check_prompt, find_surrogate

ITEM, ANSWER, UNDO, RETRACT = "item", "answer", "undo", "retract"
FIRST, SECOND, TIE, BOTH_BAD, SKIP = "first", "second", "tie", "both_bad", "skip"
VERDICTS = (FIRST, SECOND, TIE, BOTH_BAD, SKIP)
GOALS = ("goal", "unacceptable")


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with up to two responses. Responses are sorted, so that equal pairs have one `id` whatever their order.

    `model` identifies the policy that wrote them and `source` the file they are from. `notes`: per response, remarks of
    helpers or critics. None of the three is a part of the `id`.
    """

    prompt: Prompt
    responses: tuple[str, ...] = ()
    model: str = ""
    source: str = ""
    notes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        origin = Origin(self.source or "the item", 1)
        if self.prompt or len(self.responses) != 1:  # a goal example may have no prompt
            check_prompt(self.prompt, origin)
        texts = [*self.responses, *(message.content for message in self.prompt)]
        problem = next(filter(None, map(find_surrogate, texts)), "")
        problem = f"a text contains {problem}" if problem else ""
        if not all(text.strip() for text in self.responses):
            problem = "a response is empty"
        elif len(self.responses) > 2 or len({text.strip() for text in self.responses}) < len(self.responses):
            problem = f"there are {len(self.responses)} responses, or two equal ones"
        if problem:
            raise DataError(problem, where=str(origin), expected="up to two different responses with text in them")
        notes = [*self.notes, *[()] * (len(self.responses) - len(self.notes))]
        order = sorted(range(len(self.responses)), key=self.responses.__getitem__)
        object.__setattr__(self, "notes", tuple(tuple(notes[place]) for place in order))
        object.__setattr__(self, "responses", tuple(self.responses[place] for place in order))

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of prompt and responses."""
        text = json.dumps([[message.to_dict() for message in self.prompt], self.responses], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"prompt": [message.to_dict() for message in self.prompt]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Item:
        """The inverse of `to_dict`."""
        prompt = tuple(map(Message.from_dict, body["prompt"]))
        notes = tuple(map(tuple, body.get("notes", ())))
        return cls(prompt, tuple(body["responses"]), body.get("model", ""), body.get("source", ""), notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a person said about one response."""

    critiques: tuple[str, ...] = ()
    quote: str = ""  # the part of the response that the critiques are about; "" for all of it
    rating: float | None = None  # in [0, 1]
    corrected: str = ""
    goal: str = ""  # one of `GOALS`, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A person's whole answer about an item."""

    verdict: str = ""  # one of `VERDICTS`, about the item's responses in their stored order; "" without one
    strength: float | None = None  # how much better the preferred response is, at least 0; the page gives 1 to 3
    about: tuple[About, ...] = ()  # one for each response
    demonstration: str = ""
    criteria: tuple[str, ...] = ()  # what decided
    shown: tuple[int, ...] = ()  # the order in which the responses were shown
    seconds: float | None = None  # from the item's appearance to the answer

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Answer:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        about = tuple(About(**{**one, "critiques": tuple(one.get("critiques", ()))}) for one in body.get("about", ()))
        lists = {name: tuple(body.get(name, ())) for name in ("criteria", "shown")}
        return cls(**{**body, **lists, "about": about})

    def check(self, item: Item) -> None:
        """Raise a DataError, whose `what` can be shown to the person, unless this can be an answer about the item."""
        texts = [self.demonstration, *self.criteria]
        texts += [text for one in self.about for text in (*one.critiques, one.quote, one.corrected, one.goal)]
        problems = {
            f"{self.verdict!r} is not a verdict": self.verdict not in ("", *VERDICTS),
            "there are no two responses to compare": self.verdict not in ("", SKIP) and len(item.responses) != 2,
            "there is no request to write an answer to": bool(self.demonstration.strip()) and not item.prompt,
            "the answer is about other responses": len(self.about) not in (0, len(item.responses)),
            "a rating is out of range": any(one.rating is not None and not 0 <= one.rating <= 1 for one in self.about),
            "a goal is neither `goal` nor `unacceptable`": any(one.goal not in ("", *GOALS) for one in self.about),
            "a critique is empty": any(not text.strip() for one in self.about for text in one.critiques),
            "a number is out of range": not all(n is None or 0 <= n < math.inf for n in (self.strength, self.seconds)),
            "a text contains half of a surrogate pair": any(map(find_surrogate, texts)),
            "nothing was answered: choose, rate, write something, or skip": not self.says_something(),
        }
        problem = next((what for what, is_so in problems.items() if is_so), "")
        if problem:
            raise DataError(problem, where=f"item {item.id}")

    def says_something(self) -> bool:
        """Whether anything was answered; a skip counts."""
        parts = ((one.critiques, one.corrected, one.goal, one.rating is not None) for one in self.about)
        return bool(self.verdict or self.demonstration.strip()) or any(map(any, parts))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history. `item` and `person` are "" where they do not matter."""

    id: int
    time: str  # UTC, ISO 8601
    person: str
    kind: str
    item: str
    body: Mapping[str, Any]


@dataclass
class State:
    """What the events add up to."""

    items: dict[str, Item] = field(default_factory=dict)  # in the order in which they were added
    _given: dict[int, tuple[Event, Answer]] = field(default_factory=dict)  # answers not withdrawn, replaced ones too
    _current: dict[str, dict[str, tuple[int, ...]]] = field(
        default_factory=dict
    )  # by item and person; the last one counts

    def apply(self, event: Event) -> None:
        """Take one more event into account. Unknown kinds are ignored: a later version may write them."""
        if event.kind == ITEM:
            self.items.setdefault(event.item, Item.from_dict(event.body))
        elif event.kind == ANSWER:
            self._given[event.id] = event, Answer.from_dict(event.body)
            self._set(event, (*self._numbers(event), event.id))
        elif event.kind == UNDO:
            found = self._given.get(event.body.get("answer", 0))
            if found is not None and found[0].person == event.person:
                self._withdraw(found[0])
        elif event.kind == RETRACT:
            for answer, _ in list(self._given.values()):
                if event.body.get("person", "") in ("", answer.person) and event.item in ("", answer.item):
                    self._withdraw(answer)

    def _withdraw(self, event: Event) -> None:
        del self._given[event.id]
        self._set(event, tuple(number for number in self._numbers(event) if number != event.id))

    def _numbers(self, event: Event) -> tuple[int, ...]:
        return self._current.get(event.item, {}).get(event.person, ())

    def _set(self, event: Event, numbers: tuple[int, ...]) -> None:
        """Replace the answers of a person about an item. The old mapping stays: earlier states share it."""
        people = {who: kept for who, kept in self._current.get(event.item, {}).items() if who != event.person}
        self._current[event.item] = {**people, event.person: numbers} if numbers else people

    def after(self, events: Sequence[Event]) -> State:
        """The state after more events. This one does not change, so that other threads may be reading it."""
        later = State(dict(self.items), dict(self._given), dict(self._current)) if events else self
        for event in events:
            later.apply(event)
        return later

    def answers(self, person: str | None = None) -> list[tuple[Event, Answer]]:
        """The answers that count, of everybody or one person, oldest first."""
        people = (pair for given in self._current.values() for pair in given.items())
        counted = sorted(numbers[-1] for who, numbers in people if person in (None, who))
        return [self._given[number] for number in counted]

    def answer(self, person: str, item: str) -> Answer | None:
        """A person's answer about an item."""
        numbers = self._current.get(item, {}).get(person)
        return self._given[numbers[-1]][1] if numbers else None

    def last(self, person: str) -> Event | None:
        """The newest answer of a person, which `undo` withdraws."""
        return max(
            (one for one, _ in self._given.values() if one.person == person), key=lambda one: one.id, default=None
        )

    def verdicts(self) -> dict[str, dict[str, str]]:
        """The verdict of each person on each item, without skips."""
        found: dict[str, dict[str, str]] = {}
        for event, answer in self.answers():
            if answer.verdict not in ("", SKIP):
                found.setdefault(event.item, {})[event.person] = answer.verdict
        return found

    def people_of(self, item: str) -> Set[str]:
        """Who answered about an item."""
        return self._current.get(item, {}).keys()
