"""Domains and their tasks.

A **domain** is one file: prompts, responses, the gold reward, an overseer with a stated limit, and the aspects of a
response that helpers can judge (`scripts/examples/recursion/my_domain.py` is a short one). Its tasks are:

- the **main task**: respond to the domain's prompts. The overseer compares responses.
- a **helper task** for each aspect: write a note (a verdict with a quotation) on a response. A bench compares notes,
  because one aspect of one response can be checked. Each check has a cost.
- the **pointing task**, the other form of help: point at the worst flaw of a response.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.recursion.notes import Note, is_verbatim, read_note, write_note

MAIN, POINT = "main", "point"  # task names; every other task is named after its aspect
NOTHING = "nothing"  # the pointing verdict for a response without a flaw
_ROLE = Message("system", "Answer with a verdict and a quotation.")  # replaces the model's longer default


@dataclass(frozen=True)
class Aspect:
    """One property of a response that can be judged separately."""

    question: str  # the question to a helper, in one line
    verdicts: tuple[str, ...]  # The possible answers. The first one means no problem.
    # Returns the true verdict on a response, for the bench. Each call counts as a check. It may get responses that
    # `parse` cannot read.
    measure: Callable[[Prompt, str], str]
    # returns the parts of a response that a note may quote, the most relevant first
    evidence: Callable[[Prompt, str], Sequence[str]]
    plant: Callable[[Prompt, random.Random], str]  # makes a response that is likely to have a problem in this aspect
    parts: tuple[str, ...] = ()  # simpler aspects of the domain whose helpers can help with this one
    # Returns the verdict that follows from the verdicts on the parts; "" if they contradict each other. Required if
    # there are parts.
    conclude: Callable[[Mapping[str, str]], str] | None = None


class Domain(Protocol):
    """Prompts with a gold reward and an overseer who only sees part of each response."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...  # a noun phrase for a response: "chip design"
    @property
    def limit(self) -> str: ...  # what the overseer cannot see, in plain words
    @property
    def noise(self) -> float: ...  # standard deviation of the error of the overseer's impression
    @property
    def prompts(self) -> Sequence[Prompt]: ...
    @property
    def aspects(self) -> Mapping[str, Aspect]: ...  # parts of other aspects only help with those

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        """A random well-formed response, good or bad, as from a policy that only knows the format."""
        ...

    def vary(self, prompt: Prompt, response: str, rng: random.Random) -> str: ...

    def parse(self, response: str) -> Any | None: ...  # the content of a response; None if it is unreadable

    def gold(self, prompt: Prompt, response: str) -> float:
        """The gold reward; the lowest possible one for an unreadable response."""
        ...

    def impression(self, prompt: Prompt, response: str) -> float:
        """The value of a readable response to the overseer, without noise and notes."""
        ...

    def weight(self, prompt: Prompt, aspect: str, verdict: str) -> float:
        """The overseer's penalty for a reported problem; 0 for an aspect's first verdict."""
        ...


@dataclass(frozen=True)
class MainTask:
    """Respond to the domain's prompts."""

    domain: Domain

    @property
    def name(self) -> str:
        return MAIN

    @property
    def kind(self) -> tuple[str, str]:
        """The kinds of prompt and response. A helper's kind must differ from its parent's."""
        return "requests", self.domain.kind

    @property
    def helpers(self) -> tuple[str, ...]:
        parts = {part for aspect in self.domain.aspects.values() for part in aspect.parts}
        return (*(name for name in self.domain.aspects if name not in parts), POINT)

    def prompts(self, count: int, rng: random.Random, planted: float = 0.0) -> list[Prompt]:
        """`count` prompts in random order, evenly distributed."""
        asked = [self.domain.prompts[i % len(self.domain.prompts)] for i in range(count)]
        rng.shuffle(asked)
        return asked

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return self.domain.draft(prompt, rng)

    def candidates(self, prompt: Prompt) -> list[str]:
        """All possible responses; empty if a policy has to write them."""
        return []

    def gold(self, prompt: Prompt, response: str) -> float:
        return self.domain.gold(prompt, response)


@dataclass(frozen=True)
class NoteTask:
    """Write a note on a response. The prompt is the conversation followed by a question about its last answer."""

    domain: Domain
    name: str

    @property
    def aspect(self) -> Aspect:
        raise NotImplementedError

    @property
    def kind(self) -> tuple[str, str]:
        return f"requests with a {self.domain.kind}", f"note on {self.name}"

    @property
    def verdicts(self) -> tuple[str, ...]:
        return self.aspect.verdicts

    @property
    def question(self) -> str:
        return self.aspect.question

    @property
    def helpers(self) -> tuple[str, ...]:
        return self.aspect.parts

    def evidence(self, prompt: Prompt, response: str) -> list[str]:
        return list(self.aspect.evidence(prompt, response))

    def ask(self, prompt: Prompt, response: str) -> Prompt:
        return (_ROLE, *prompt, Message("assistant", response), Message("user", self.question))

    @staticmethod
    def subject(asked: Prompt) -> tuple[Prompt, str]:
        """The prompt and the response that a helper's prompt is about."""
        return asked[1:-2], asked[-2].content

    def prompts(self, count: int, rng: random.Random, planted: float = 0.0) -> list[Prompt]:
        """Questions about drafts. With probability `planted`, a draft is made to have a problem."""
        asked: list[Prompt] = []
        for number in range(count):
            request = self.domain.prompts[number % len(self.domain.prompts)]
            make = self.aspect.plant if rng.random() < planted else self.domain.draft
            asked.append(self.ask(request, make(request, rng)))
        rng.shuffle(asked)
        return asked

    def read(self, response: str) -> Note | None:
        return read_note(self.name, response, self.verdicts)

    def truth(self, prompt: Prompt) -> str:
        """The right verdict. For a helper task, each call counts as a check."""
        return self.aspect.measure(*self.subject(prompt))

    def gold(self, prompt: Prompt, response: str) -> float:
        """1 for the right verdict with a verbatim quotation, else 0."""
        return note_value(self.read(response), self.truth(prompt), self.subject(prompt)[1])


class HelperTask(NoteTask):
    """Write a note on one aspect of a response."""

    @cached_property
    def aspect(self) -> Aspect:
        return self.domain.aspects[self.name]

    @property
    def question(self) -> str:
        return f"{self.aspect.question} Say {' or '.join(self.verdicts)}."

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        pieces = self.evidence(*self.subject(prompt))
        return write_note(rng.choice(self.verdicts), rng.choice(pieces or [""]))

    def candidates(self, prompt: Prompt) -> list[str]:
        """A note for each verdict, with the most relevant quotation."""
        pieces = self.evidence(*self.subject(prompt))
        return [write_note(verdict, pieces[0]) for verdict in self.verdicts] if pieces else []


@dataclass(frozen=True)
class PointTask(NoteTask):
    """Point at the worst flaw of a response. A verdict names an aspect and its problem."""

    name: str = POINT

    @cached_property
    def flaws(self) -> dict[str, tuple[str, str]]:
        """The aspect and the aspect's verdict for each verdict of this task."""
        aspects = {name: self.domain.aspects[name] for name in MainTask(self.domain).helpers if name != POINT}
        return {f"{name} {verdict}": (name, verdict) for name, one in aspects.items() for verdict in one.verdicts[1:]}

    @cached_property
    def aspect(self) -> Aspect:
        aspects = self.domain.aspects
        return Aspect(
            question="What is the worst flaw here, or nothing?",
            verdicts=(NOTHING, *self.flaws),
            measure=self._worst_flaw,
            evidence=lambda prompt, text: [piece for one in aspects.values() for piece in one.evidence(prompt, text)],
            plant=lambda prompt, rng: aspects[rng.choice([*self.flaws.values()])[0]].plant(prompt, rng),
        )

    @property
    def kind(self) -> tuple[str, str]:
        return super().kind[0], "the worst flaw"

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return rng.choice(self.candidates(prompt) or [NOTHING])

    def candidates(self, prompt: Prompt) -> list[str]:
        notes = []
        for verdict in self.verdicts:
            names = [self.flaws[verdict][0]] if verdict in self.flaws else list(self.domain.aspects)
            pieces = [piece for name in names for piece in self.domain.aspects[name].evidence(*self.subject(prompt))]
            notes += [write_note(verdict, pieces[0])] if pieces else []
        return notes

    def is_real(self, prompt: Prompt, verdict: str) -> bool:
        if verdict == NOTHING:
            return not self._real_flaws(*self.subject(prompt))
        name, wrong = self.flaws[verdict]
        return self.domain.aspects[name].measure(*self.subject(prompt)) == wrong

    def _real_flaws(self, prompt: Prompt, response: str) -> list[str]:
        aspects = self.domain.aspects
        return [flaw for flaw, (name, bad) in self.flaws.items() if aspects[name].measure(prompt, response) == bad]

    def _worst_flaw(self, prompt: Prompt, response: str) -> str:
        flaws = self._real_flaws(prompt, response)
        return max(flaws, key=lambda flaw: self.domain.weight(prompt, *self.flaws[flaw]), default=NOTHING)


Task = MainTask | HelperTask | PointTask


def note_value(note: Note | None, truth: str, response: str) -> float:
    return float(note is not None and note.verdict == truth and is_verbatim(note, response))


def make_task(domain: Domain, name: str) -> Task:
    """The task with this name. Raises ConfigError if it does not exist in the domain."""
    if name == MAIN:
        return MainTask(domain)
    if name == POINT:
        return PointTask(domain)
    if name not in domain.aspects:
        raise ConfigError(
            f"The domain {domain.name} has no task {name!r}", expected=", ".join([MAIN, POINT, *domain.aspects])
        )
    return HelperTask(domain, name)
