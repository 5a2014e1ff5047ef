"""Who is asked what: items are handed out, kept for a while, and given to as many people as wanted."""

from __future__ import annotations

import dataclasses
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator

from rrm_lm.feedback.store.events import ANSWER, UNDO, Answer, Item, State
from rrm_lm.feedback.store.files import Store


class Desk:
    """Hands out the items of a store and takes the answers. Safe to use from several threads.

    Args:
        store: The open store.
        overlap: How many people answer each item.
        lease: Seconds for which an item is kept for the person who sees it.
        seed: Seed of the order of items, which differs from person to person only by what others have taken.
    """

    def __init__(self, store: Store, *, overlap: int = 1, lease: float = 600.0, seed: int = 0) -> None:
        self.store, self.overlap, self.lease, self.seed = store, overlap, lease, seed
        self.priority: Callable[[Item], float] = lambda item: 0.0  # items of higher priority come first
        self.expected = 0  # items that there will be when a model has answered all prompts; 0 without one
        self._leases: dict[str, dict[str, float]] = {}  # until when an item is kept for a person
        self._places: dict[str, float] = {}  # the random order of items
        self._since: dict[tuple[str, str], float] = {}  # when an item was first shown to a person
        self._lock = threading.RLock()

    @property
    def state(self) -> State:
        return self.store.state()

    def open_items(self, person: str) -> list[Item]:
        """The items that the person can still answer, in the order in which they are handed out."""
        with self._lock:
            state = self.state
            return [state.items[name] for _, name in sorted(self._turns(state, person))]

    def next_item(self, person: str) -> Item | None:
        """The next item for a person, which is kept for them; None if no item is free now."""
        with self._lock:
            state = self.state
            _, name = min(self._turns(state, person), default=(None, ""))
            if name:
                self.keep(person, name)
            return state.items.get(name)

    def _open(self, state: State, person: str) -> list[str]:
        now, found = time.monotonic(), []
        for name in state.items:
            answered = state.people_of(name)
            if person in answered or len(answered) >= self.overlap:  # most items of a long list
                continue
            kept = {who for who, until in self._leases.get(name, {}).items() if until > now}
            if len((answered | kept) - {person}) < self.overlap:
                found.append(name)
        return found

    def _turns(self, state: State, person: str) -> Iterator[tuple[tuple[bool, float, float], str]]:
        """Open items with what sorts them: those kept for the person first, then by priority, then at random."""
        now = time.monotonic()
        for name in self._open(state, person):
            if name not in self._places:
                self._places[name] = self._random(name).random()
            kept = self._leases.get(name, {}).get(person, 0.0) > now
            yield (not kept, -self.priority(state.items[name]), self._places[name]), name

    def keep(self, person: str, item: str) -> None:
        """Keep an item for the person who sees it."""
        with self._lock:
            now = time.monotonic()
            self._leases.setdefault(item, {})[person] = now + self.lease
            self._since.setdefault((person, item), now)

    def order(self, person: str, item: Item) -> tuple[int, ...]:
        """The order in which the person sees the responses: random, and the same at each visit."""
        order = list(range(len(item.responses)))
        self._random(f"{person} {item.id}").shuffle(order)
        return tuple(order)

    def take(self, person: str, item: Item, answer: Answer, request: str) -> None:
        """Store an answer. Raises DataError: it is not one about the item; CheckpointError: it could not be stored."""
        answer.check(item)
        with self._lock:
            shown = self._since.get((person, item.id))
            seconds = None if shown is None else round(time.monotonic() - shown, 1)
            body = dataclasses.asdict(dataclasses.replace(answer, seconds=seconds))
            self.store.append(ANSWER, person=person, item=item.id, body=body, request=f"{person} {request}")
            self._leases.get(item.id, {}).pop(person, None)
            self._since.pop((person, item.id), None)

    def undo(self, person: str, request: str) -> str | None:
        """Withdraw the person's newest answer; returns its item, which the person sees again."""
        with self._lock:
            last = self.state.last(person)
            if last is None:
                return None
            self.store.append(UNDO, person=person, body={"answer": last.id}, request=f"{person} {request}")
            return last.item

    def progress(self, person: str) -> tuple[int, int, float | None]:
        """How many items the person has answered, how many there are for them, and the seconds left at their speed."""
        state = self.state
        answers = state.answers(person)
        total = max(len(answers) + len(self._open(state, person)), self.expected)
        speeds = [answer.seconds for _, answer in answers[-20:] if answer.seconds is not None]
        left = statistics.median(speeds) * (total - len(answers)) if speeds else None
        return len(answers), total, left

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")
