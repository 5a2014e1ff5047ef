"""Simulated overseers for each kind of task: one with a limited view, a bench for one aspect, and a flaw judge.

An overseer's noise is a function of seed, prompt and response, so the same question gets the same answer in every arm
of an experiment and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol, runtime_checkable

from rrm_lm.feedback.asking.overseers import Verdict, uniform
from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.notes import Note, is_verbatim
from rrm_lm.recursion.tasks import Domain, HelperTask, MainTask, PointTask, Task, note_value

Notes = Sequence[Note]
CONTRADICTED = "notes contradict each other"


@runtime_checkable
class NoteReader(Protocol):
    """An overseer that takes notes as objects; others get them as text. `assistance.Assisted` handles both."""

    @property
    def name(self) -> str: ...
    @property
    def limit(self) -> str: ...

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        """Choose the best response, given the notes on each."""
        ...

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        """Describe what is wrong with a response; "" if nothing is."""
        ...


@dataclass(frozen=True)
class LimitedOverseer:
    """Sees the domain's impression of a response, with noise, and subtracts a weight for each reported problem."""

    domain: Domain  # the domain whose responses it judges
    seed: int = 0  # seed of the noise

    @property
    def name(self) -> str:
        return f"{self.domain.name} overseer"

    @property
    def limit(self) -> str:
        return self.domain.limit

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        return _best([self._value(prompt, text, some) for text, some in zip(responses, notes, strict=True)])

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        if self.domain.parse(response) is None:
            return "This cannot be read."
        return " ".join(f"{note.helper}: {note.verdict}." for note in notes if self._weight(prompt, note) > 0)

    def _value(self, prompt: Prompt, response: str, notes: Notes) -> float:
        if self.domain.parse(response) is None:
            return -math.inf
        keys = [str(self.seed), self.domain.name, *(message.content for message in prompt), response]
        error = self.domain.noise * NormalDist().inv_cdf(uniform(*keys))
        return self.domain.impression(prompt, response) + error - sum(self._weight(prompt, note) for note in notes)

    def _weight(self, prompt: Prompt, note: Note) -> float:
        if note.helper in self.domain.aspects:
            return self.domain.weight(prompt, note.helper, note.verdict)
        flaw = PointTask(self.domain).flaws.get(note.verdict)
        return self.domain.weight(prompt, *flaw) if flaw else 0.0


@dataclass
class Bench:
    """Checks one aspect of one response: whether a note's verdict is right and its quotation verbatim. The verdict
    follows from usable notes of its own helpers on the response; without these it is measured, which is one check.
    """

    task: HelperTask  # the aspect's task
    # all measurements so far; its length is the number of checks
    measured: dict[Prompt, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task.domain.name} bench, {self.task.name}"

    @property
    def limit(self) -> str:
        return f"can check nothing but {self.task.name}, one {self.task.domain.kind} at a time"

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        truth = self._truth(prompt, notes[0])
        if not truth:
            return Verdict(None, abstained=CONTRADICTED)
        subject = self.task.subject(prompt)[1]
        return _best([note_value(self.task.read(text), truth, subject) for text in responses])

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        truth, note = self._truth(prompt, notes), self.task.read(response)
        if note is None:
            return "This is no note."
        if not is_verbatim(note, self.task.subject(prompt)[1]):
            return "The quotation is made up."
        return f"It is {truth}." if truth else ""

    def _truth(self, prompt: Prompt, notes: Notes) -> str:
        conclude = self.task.aspect.conclude
        if notes and conclude is not None:
            # A part without a note counts as having no problem.
            verdicts = {name: self.task.domain.aspects[name].verdicts[0] for name in self.task.helpers}
            return conclude(verdicts | {note.helper: note.verdict for note in notes if note.helper in verdicts})
        if prompt not in self.measured:
            self.measured[prompt] = self.task.truth(prompt)
        return self.measured[prompt]


@dataclass
class FlawJudge:
    """Only judges whether a flaw that a helper points at is real. A real flaw with more weight is better."""

    task: PointTask  # the pointing task
    # all judgments so far; its length is the number of checks
    judged: dict[tuple[Prompt, str], bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task.domain.name} judge of flaws"

    @property
    def limit(self) -> str:
        return "looks only where somebody points"

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        return _best([self._value(prompt, response) for response in responses])

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        value = self._value(prompt, response)
        if value == 0:  # the note says that there is no flaw, which was not checked
            return ""
        return "That is so." if value > 0 else "That is not so."

    def is_real(self, prompt: Prompt, note: Note) -> bool:
        if (prompt, note.verdict) not in self.judged:
            self.judged[prompt, note.verdict] = self.task.is_real(prompt, note.verdict)
        return self.judged[prompt, note.verdict]

    def _value(self, prompt: Prompt, response: str) -> float:
        note, (request, subject) = self.task.read(response), self.task.subject(prompt)
        if note is None or not is_verbatim(note, subject):
            return -2.0
        if (flaw := self.task.flaws.get(note.verdict)) is None:
            return 0.0  # checking one place cannot show that there is no flaw anywhere
        return self.task.domain.weight(request, *flaw) if self.is_real(prompt, note) else -1.0


def overseer_of(task: Task, seed: int = 0) -> LimitedOverseer | Bench | FlawJudge:
    if isinstance(task, MainTask):
        return LimitedOverseer(task.domain, seed)
    return Bench(task) if isinstance(task, HelperTask) else FlawJudge(task)


def _best(values: Sequence[float]) -> Verdict:
    """Prefer the response with the highest value; no preference on a tie."""
    ranked = sorted(values, reverse=True)
    return Verdict(None) if ranked[0] == ranked[1] else Verdict(values.index(ranked[0]))
