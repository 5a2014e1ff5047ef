"""Overseers of the tasks: one who sees part of a response, a bench for one aspect, a judge of flaws pointed out.

Each says what it sees, and what it does with notes. Noise is a function of seed, prompt and response, so that the same
question gets the same answer in every arm of an experiment and after every interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol, runtime_checkable

from rrm_lm.feedback.asking.overseers import Verdict, uniform
from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.notes import Note, is_verbatim
from rrm_lm.recursion.tasks import Domain, HelperTask, MainTask, PointTask, Task, note_worth

Notes = Sequence[Note]
CONTRADICTED = "notes contradict each other"


@runtime_checkable
class NoteReader(Protocol):
    """An overseer who takes notes into account by itself. Any other gets them as text (see `assistance.py`)."""

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> str: ...

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        """Say which response is best, knowing some notes on each."""
        ...

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        """Say in words what is wrong with a response; "" for nothing to say."""
        ...


class _WithoutNotes:
    """Makes an overseer of a note reader: the one that nobody helps."""

    def compare(self: NoteReader, prompt: Prompt, responses: Sequence[str]) -> Verdict:  # type: ignore[misc]
        return self.judge(prompt, responses, [()] * len(responses))

    def critique(self: NoteReader, prompt: Prompt, response: str) -> str:  # type: ignore[misc]
        return self.explain(prompt, response, ())


@dataclass(frozen=True)
class LimitedOverseer(_WithoutNotes):
    """Sees a domain's headline, with noise, and takes off its own weight for every problem that it is told of.

    Attributes:
        domain: What is judged.
        seed: Which of many equal people this one is.
    """

    domain: Domain
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.domain.name} overseer"

    @property
    def limit(self) -> str:
        return self.domain.limit

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        return _best([self._value(*pair) for pair in zip([prompt] * len(responses), responses, notes, strict=True)])

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        if self.domain.parse(response) is None:
            return "This cannot be read."
        told = [note for note in notes if self._weight(prompt, note) > 0]
        return " ".join(f"{note.helper}: {note.verdict}." for note in told)

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
class Bench(_WithoutNotes):
    """Checks one aspect of one response: is the verdict of a note right, and are the words in its quotation there?

    With notes of helpers of its own it does not measure: it concludes the verdict from what they say. Where none of
    them says anything that may be shown, it measures, and that is a check.

    Attributes:
        task: Which aspect.
        measured: What has been measured so far; its length is the number of checks.
    """

    task: HelperTask
    measured: dict[Prompt, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task.domain.name} bench, {self.task.name}"

    @property
    def limit(self) -> str:
        return f"can check nothing but {self.task.name}, one {self.task.domain.kind} at a time"

    @property
    def checks(self) -> int:
        return len(self.measured)

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        truth = self._truth(prompt, notes[0])
        if not truth:
            return Verdict(None, abstained=CONTRADICTED)
        subject = self.task.subject(prompt)[1]
        return _best([note_worth(self.task.read(text), truth, subject) for text in responses])

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
            return conclude(_verdicts(self.task, notes))
        if prompt not in self.measured:
            self.measured[prompt] = self.task.truth(prompt)
        return self.measured[prompt]


@dataclass
class FlawJudge(_WithoutNotes):
    """Judges only whether a flaw that was pointed at is real; a real one that weighs more is the better find.

    Attributes:
        task: The pointing.
        judged: What has been judged so far; its length is the number of checks.
    """

    task: PointTask
    judged: dict[tuple[Prompt, str], bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task.domain.name} judge of flaws"

    @property
    def limit(self) -> str:
        return "looks only where somebody points"

    @property
    def checks(self) -> int:
        return len(self.judged)

    def judge(self, prompt: Prompt, responses: Sequence[str], notes: Sequence[Notes]) -> Verdict:
        return _best([self._worth(prompt, response) for response in responses])

    def explain(self, prompt: Prompt, response: str, notes: Notes) -> str:
        return "That is so." if self._worth(prompt, response) >= 0 else "That is not so."

    def is_real(self, prompt: Prompt, note: Note) -> bool:
        """Whether the flaw in a note is real: one check."""
        if (prompt, note.verdict) not in self.judged:
            self.judged[prompt, note.verdict] = self.task.is_real(prompt, note.verdict)
        return self.judged[prompt, note.verdict]

    def _worth(self, prompt: Prompt, response: str) -> float:
        note = self.task.read(response)
        if note is None or not is_verbatim(note, self.task.subject(prompt)[1]):
            return -2.0
        flaw = self.task.flaws.get(note.verdict)
        if flaw is None:
            return 0.0  # that nothing is wrong cannot be seen by looking at one place
        weight = self.task.domain.weight(self.task.subject(prompt)[0], *flaw)
        return weight if self.is_real(prompt, note) else -1.0


def overseer_of(task: Task, seed: int = 0) -> LimitedOverseer | Bench | FlawJudge:
    """Who judges the responses to a task."""
    if isinstance(task, MainTask):
        return LimitedOverseer(task.domain, seed)
    return Bench(task) if isinstance(task, HelperTask) else FlawJudge(task)


def _best(values: Sequence[float]) -> Verdict:
    """The highest value's response; none where it is shared."""
    ranked = sorted(values, reverse=True)
    return Verdict(None) if ranked[0] == ranked[1] else Verdict(values.index(ranked[0]))


def _verdicts(task: HelperTask, notes: Notes) -> Mapping[str, str]:
    """By part, what its helper says; the part's first verdict, that nothing is wrong, where it says nothing."""
    said = {name: task.domain.aspects[name].verdicts[0] for name in task.helpers}
    return said | {note.helper: note.verdict for note in notes if note.helper in said}
