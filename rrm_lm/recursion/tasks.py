"""What is to be solved: domains, and the tasks that they pose.

A **domain** is one file: what is asked, what a response is, the simulated truth, an overseer with a stated limit, and
the aspects of a response that helpers can judge. `rrm_lm/recursion/domains/chip.py` is one;
`rrm_lm/recursion/__init__.py` says how to write another. Everything else here is made from it:

- the **main task**: respond to the domain's prompts; the overseer compares responses;
- for each aspect a **helper task**: write a note on a response, a verdict with a quotation; a bench compares notes,
  since whether one aspect of one response is right can be checked (at a price: one check);
- **pointing**, the other shape of help: point at the worst flaw of a response.
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

MAIN, POINT = "main", "point"  # names of tasks; every other one is an aspect's
NOTHING = "nothing"  # what is pointed at where there is no flaw
_ROLE = Message("system", "Answer with a verdict and a quotation.")  # in place of the model's own, which is longer


@dataclass(frozen=True)
class Aspect:
    """One thing about a response that can be judged by itself.

    Attributes:
        question: What a helper is asked, in one line.
        verdicts: What it may answer; the first one says that nothing is wrong.
        measure: The truth of a response, as the bench finds it. Asking it is a check, and checks are counted.
            It may get responses that `parse` cannot read.
        evidence: What of a response can be quoted for a verdict, the most telling first.
        plant: A response that is likely to have something wrong in this aspect.
        parts: Other aspects of the domain whose helpers can help with this one.
        conclude: The verdict that follows from the parts' verdicts, "" where they contradict each other; needed where
            there are parts.
    """

    question: str
    verdicts: tuple[str, ...]
    measure: Callable[[Prompt, str], str]
    evidence: Callable[[Prompt, str], Sequence[str]]
    plant: Callable[[Prompt, random.Random], str]
    parts: tuple[str, ...] = ()
    conclude: Callable[[Mapping[str, str]], str] | None = None


class Domain(Protocol):
    """A world with a question, a simulated truth, and an overseer who sees only part of it.

    Attributes:
        name: What it is called.
        kind: What a response is, in words: "chip design".
        limit: What the overseer cannot see, in plain words.
        noise: Standard deviation of the error of the overseer's impression.
        prompts: Everything that is asked.
        aspects: What helpers can judge, by name. Those named as parts of others help only these.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def limit(self) -> str: ...

    @property
    def noise(self) -> float: ...

    @property
    def prompts(self) -> Sequence[Prompt]: ...

    @property
    def aspects(self) -> Mapping[str, Aspect]: ...

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        """Some well-formed response, good or bad: what a policy that has learned nothing but the form may write."""
        ...

    def vary(self, prompt: Prompt, response: str, rng: random.Random) -> str:
        """A response that differs from this one in one thing."""
        ...

    def parse(self, response: str) -> Any | None:
        """What the response says; None where it cannot be read."""
        ...

    def gold(self, prompt: Prompt, response: str) -> float:
        """The truth: how good the response is. The lowest value there is for one that cannot be read."""
        ...

    def impression(self, prompt: Prompt, response: str) -> float:
        """What the overseer sees of the worth of a response that can be read, without noise and without notes."""
        ...

    def weight(self, prompt: Prompt, aspect: str, verdict: str) -> float:
        """What the overseer takes off for a problem that it is told of; 0 for the first verdict of an aspect."""
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
        """What is asked, and what is answered: a helper's must differ from its parent's."""
        return "requests", self.domain.kind

    @property
    def helpers(self) -> tuple[str, ...]:
        """Tasks whose agents can help."""
        parts = {part for aspect in self.domain.aspects.values() for part in aspect.parts}
        return (*(name for name in self.domain.aspects if name not in parts), POINT)

    def prompts(self, count: int, rng: random.Random, planted: float = 0.0) -> list[Prompt]:
        """`count` requests: each as often as the others, in random order."""
        asked = [self.domain.prompts[i % len(self.domain.prompts)] for i in range(count)]
        rng.shuffle(asked)
        return asked

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return self.domain.draft(prompt, rng)

    def candidates(self, prompt: Prompt) -> list[str]:
        """Every response that there is to choose from; none where a policy has to write them."""
        return []

    def is_readable(self, prompt: Prompt, response: str) -> bool:
        return self.domain.parse(response) is not None

    def gold(self, prompt: Prompt, response: str) -> float:
        return self.domain.gold(prompt, response)


class Judged:
    """What helper tasks have in common: their prompt is the conversation, and a question about its last answer."""

    domain: Domain
    question: str

    def ask(self, prompt: Prompt, response: str) -> Prompt:
        """The prompt that asks this helper about a response."""
        return (_ROLE, *prompt, Message("assistant", response), Message("user", self.question))

    @staticmethod
    def subject(asked: Prompt) -> tuple[Prompt, str]:
        """The prompt and the response that a prompt of `ask` is about."""
        return asked[1:-2], asked[-2].content

    def _prompts(
        self, count: int, rng: random.Random, planted: float, plant: Callable[[Prompt, random.Random], str]
    ) -> list[Prompt]:
        asked: list[Prompt] = []
        for number in range(count):
            request = self.domain.prompts[number % len(self.domain.prompts)]
            make = plant if rng.random() < planted else self.domain.draft
            asked.append(self.ask(request, make(request, rng)))
        rng.shuffle(asked)
        return asked


@dataclass(frozen=True)
class HelperTask(Judged):
    """Write a note on one aspect of a response."""

    domain: Domain
    name: str

    @cached_property
    def aspect(self) -> Aspect:
        return self.domain.aspects[self.name]

    @property
    def verdicts(self) -> tuple[str, ...]:
        return self.aspect.verdicts

    @property
    def question(self) -> str:  # type: ignore[override]
        return f"{self.aspect.question} Say {' or '.join(self.verdicts)}."

    @property
    def kind(self) -> tuple[str, str]:
        return f"requests with a {self.domain.kind}", f"note on {self.name}"

    @property
    def helpers(self) -> tuple[str, ...]:
        return self.aspect.parts

    def evidence(self, prompt: Prompt, response: str) -> list[str]:
        """What of a response can be quoted."""
        return list(self.aspect.evidence(prompt, response))

    def prompts(self, count: int, rng: random.Random, planted: float = 0.0) -> list[Prompt]:
        """Questions about drafts, of which about the share `planted` are made to have something wrong."""
        return self._prompts(count, rng, planted, self.aspect.plant)

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        pieces = self.evidence(*self.subject(prompt))
        return write_note(rng.choice(self.verdicts), rng.choice(pieces or [""]))

    def candidates(self, prompt: Prompt) -> list[str]:
        """A note for each verdict, with the most telling quotation."""
        pieces = self.evidence(*self.subject(prompt))
        return [write_note(verdict, pieces[0]) for verdict in self.verdicts] if pieces else []

    def read(self, response: str) -> Note | None:
        return read_note(self.name, response, self.verdicts)

    def is_readable(self, prompt: Prompt, response: str) -> bool:
        return self.read(response) is not None

    def truth(self, prompt: Prompt) -> str:
        """The right verdict, as the bench finds it."""
        return self.aspect.measure(*self.subject(prompt))

    def gold(self, prompt: Prompt, response: str) -> float:
        """1 for the right verdict with words that stand in the response, else 0."""
        return note_worth(self.read(response), self.truth(prompt), self.subject(prompt)[1])


@dataclass(frozen=True)
class PointTask(Judged):
    """Point at the worst flaw of a response; its verdict is an aspect with what is wrong there."""

    domain: Domain
    name: str = POINT

    @cached_property
    def flaws(self) -> dict[str, tuple[str, str]]:
        """By verdict, the aspect and its verdict that it stands for."""
        aspects = {name: self.domain.aspects[name] for name in MainTask(self.domain).helpers if name != POINT}
        return {f"{name} {verdict}": (name, verdict) for name, one in aspects.items() for verdict in one.verdicts[1:]}

    @property
    def verdicts(self) -> tuple[str, ...]:
        return (NOTHING, *self.flaws)

    @property
    def question(self) -> str:  # type: ignore[override]
        return "What is the worst flaw here, or nothing?"

    @property
    def kind(self) -> tuple[str, str]:
        return f"requests with a {self.domain.kind}", "the worst flaw"

    @property
    def helpers(self) -> tuple[str, ...]:
        return ()

    def evidence(self, prompt: Prompt, response: str) -> list[str]:
        """What of a response can be quoted."""
        return [piece for one in self.domain.aspects.values() for piece in one.evidence(prompt, response)]

    def prompts(self, count: int, rng: random.Random, planted: float = 0.0) -> list[Prompt]:
        aspects = [self.domain.aspects[name] for name, _ in self.flaws.values()]
        return self._prompts(count, rng, planted, lambda prompt, rng: rng.choice(aspects).plant(prompt, rng))

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return rng.choice(self.candidates(prompt) or [NOTHING])

    def candidates(self, prompt: Prompt) -> list[str]:
        notes = []
        for verdict in self.verdicts:
            names = [self.flaws[verdict][0]] if verdict in self.flaws else list(self.domain.aspects)
            pieces = [piece for name in names for piece in self.domain.aspects[name].evidence(*self.subject(prompt))]
            notes += [write_note(verdict, pieces[0])] if pieces else []
        return notes

    def read(self, response: str) -> Note | None:
        return read_note(self.name, response, self.verdicts)

    def is_readable(self, prompt: Prompt, response: str) -> bool:
        return self.read(response) is not None

    def is_real(self, prompt: Prompt, verdict: str) -> bool:
        """Whether the flaw is there: the one thing that the overseer judges."""
        if verdict == NOTHING:
            return all(not self.is_real(prompt, flaw) for flaw in self.flaws)
        name, wrong = self.flaws[verdict]
        return self.domain.aspects[name].measure(*self.subject(prompt)) == wrong

    def truth(self, prompt: Prompt) -> str:
        """The flaw that weighs most."""
        request = self.subject(prompt)[0]
        real = [flaw for flaw in self.flaws if self.is_real(prompt, flaw)]
        return max(real, key=lambda flaw: self.domain.weight(request, *self.flaws[flaw]), default=NOTHING)

    def gold(self, prompt: Prompt, response: str) -> float:
        return note_worth(self.read(response), self.truth(prompt), self.subject(prompt)[1])


Task = MainTask | HelperTask | PointTask
NoteTask = HelperTask | PointTask


def note_worth(note: Note | None, truth: str, response: str) -> float:
    """1 for a note with the right verdict and words that stand in the response, else 0."""
    return float(note is not None and note.verdict == truth and is_verbatim(note, response))


def make_task(domain: Domain, name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: The domain has none.
    """
    if name == MAIN:
        return MainTask(domain)
    if name == POINT:
        return PointTask(domain)
    if name not in domain.aspects:
        raise ConfigError(
            f"The domain {domain.name} has no task {name!r}", expected=", ".join([MAIN, POINT, *domain.aspects])
        )
    return HelperTask(domain, name)
