"""Assistance: passes helpers' notes to an overseer and protects it from bad helpers.

There are two forms of help: every helper writes a note (`HelperNotes`), or one helper points at the worst flaw and the
overseer only judges whether it is real (`WorstFlaw`). The overseer only gets notes that are readable and whose
quotation is verbatim. A helper that answers nothing, or the same about every response, is ignored.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rrm_lm.feedback.asking.collection import Subject
from rrm_lm.feedback.asking.journal import Journal
from rrm_lm.feedback.asking.overseers import Overseer, Verdict
from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.notes import Note, is_verbatim, shortened, with_notes
from rrm_lm.recursion.oversight import FlawJudge, NoteReader
from rrm_lm.recursion.tasks import NOTHING, NoteTask, PointTask

logger = logging.getLogger(__name__)

ENOUGH = 12  # minimum number of responses at which saying the same about all of them is a fault
_CHUNK = 64  # responses per call of a helper; answers are saved after each chunk


class Helper(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def task(self) -> Any: ...

    def respond(self, prompts: Sequence[Prompt]) -> list[str]: ...


class Assistance(Protocol):
    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Collect notes on these responses. The first call decides which helpers are ignored."""
        ...

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]: ...  # the notes on a prepared response

    def account(self) -> dict[str, Any]: ...  # counts of notes written and dropped


@dataclass
class HelperAnswers:
    """One helper's answers, as notes and counts."""

    # the note by response; None if the answer was dropped
    notes: dict[Subject, Note | None] = field(default_factory=dict)
    asked: int = 0  # number of responses that it was asked about
    unreadable: int = 0  # number of answers that are not notes
    false_quotations: int = 0  # number of notes dropped because the response does not contain their quotation
    cut: int = 0  # number of notes whose quotation was shortened
    whole: int = 0  # number of notes that quote an entire response although a shorter quotation is possible
    ignored: str = ""  # why all its notes are ignored; "" if they are not

    def add(self, task: NoteTask, subject: Subject, text: str) -> None:
        self.asked += 1
        self.notes[subject] = None
        if (note := task.read(text)) is None:
            self.unreadable += 1
        elif not is_verbatim(note, subject[1]):
            self.false_quotations += 1
        else:
            whole = subject[1].strip()
            self.whole += note.quote.strip() == whole and any(
                piece.strip() != whole for piece in task.evidence(*subject)
            )
            self.notes[subject] = shortened(note)
            self.cut += self.notes[subject] != note

    def fault(self) -> str:
        """Why these notes are useless; "" if they are not."""
        verdicts = [note.verdict for note in self.notes.values() if note is not None]
        if len(self.notes) < ENOUGH:
            return ""
        if not verdicts:
            return "answers nothing"
        if self.whole == len(verdicts):
            return "quotes everything"
        return f"always says {verdicts[0]!r}" if len(set(verdicts)) == 1 and len(verdicts) >= ENOUGH else ""

    def to_dict(self) -> dict[str, Any]:
        verdicts = Counter(note.verdict for note in self.notes.values() if note is not None)
        return {
            "asked": self.asked,
            "notes": sum(verdicts.values()),
            "unreadable": self.unreadable,
            "false_quotations": self.false_quotations,
            "cut": self.cut,
            "verdicts": dict(sorted(verdicts.items())),
            "ignored": self.ignored,
        }


class HelperNotes:
    """Each helper writes a note on every response.

    The first `prepare` decides which helpers are ignored, because the reward of a response must not depend on the other
    responses that are scored.

    Answers are saved in the file `path` as they arrive, so that no question is asked twice; None keeps them in memory.
    `ignored` is an earlier decision (by helper, why its notes are ignored), or None to decide now.
    """

    def __init__(
        self, helpers: Sequence[Helper], path: Path | None = None, ignored: Mapping[str, str] | None = None
    ) -> None:
        self.helpers, self.path, self._decided = tuple(helpers), path, ignored is not None
        self.answers = {helper.name: HelperAnswers(ignored=(ignored or {}).get(helper.name, "")) for helper in helpers}

    def prepare(self, subjects: Sequence[Subject]) -> None:
        distinct = list(dict.fromkeys(subjects))
        with Journal(self.path, {"notes_by": [helper.name for helper in self.helpers]}) as journal:
            saved = {_key(entry): str(entry["text"]) for entry in journal.entries}
            for helper in self.helpers:
                answers = self.answers[helper.name]
                left = [subject for subject in distinct if subject not in answers.notes]
                unasked = [subject for subject in left if _key(_entry(helper.name, subject)) not in saved]
                for start in range(0, len(unasked), _CHUNK):
                    chunk = unasked[start : start + _CHUNK]
                    texts = helper.respond([helper.task.ask(*subject) for subject in chunk])
                    for entry in map(_entry, [helper.name] * len(chunk), chunk, texts):
                        journal.add(entry)
                        saved[_key(entry)] = entry["text"]
                for subject in left:
                    answers.add(helper.task, subject, saved[_key(_entry(helper.name, subject))])
                if not self._decided and (fault := answers.fault()):
                    answers.ignored = fault
                    logger.warning("the helper %s %s: its notes are ignored", helper.name, fault)
        self._decided = True

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        found = [answers.notes[prompt, response] for answers in self.answers.values() if not answers.ignored]
        return tuple(note for note in found if note is not None)

    def account(self) -> dict[str, Any]:
        return {name: answers.to_dict() for name, answers in self.answers.items()}


class WorstFlaw:
    """One helper points at the worst flaw. The overseer checks it, and only real flaws count.

    The pointer's task is a `PointTask`. Each decision of the judge on whether a flaw is real counts as a check. For
    `path` and `ignored`, see `HelperNotes`.
    """

    def __init__(
        self, pointer: Helper, judge: FlawJudge, path: Path | None = None, ignored: Mapping[str, str] | None = None
    ) -> None:
        self.pointer, self.judge = pointer, judge
        self.pointed = HelperNotes([pointer], path, ignored)

    def prepare(self, subjects: Sequence[Subject]) -> None:
        self.pointed.prepare(subjects)

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        task: PointTask = self.pointer.task
        asked = task.ask(prompt, response)
        return tuple(note for note in self._flaws(prompt, response) if self.judge.is_real(asked, note))

    @property
    def looks(self) -> int:
        """Number of flaws that the overseer is pointed at. It checks each once."""
        return sum(len(self._flaws(*subject)) for subject in self._subjects)

    def account(self) -> dict[str, Any]:
        real = sum(len(self.notes(*subject)) for subject in self._subjects)
        return self.pointed.account() | {"looks": self.looks, "real": real}

    @property
    def _subjects(self) -> list[Subject]:
        return list(self.pointed.answers[self.pointer.name].notes)

    def _flaws(self, prompt: Prompt, response: str) -> list[Note]:
        return [note for note in self.pointed.notes(prompt, response) if note.verdict != NOTHING]


@dataclass(frozen=True)
class AboutSubject:
    """Assistance for the overseer of a helper task: notes on the same response as the task's own notes."""

    assistance: Assistance  # the source of notes
    task: NoteTask  # the helper task

    def prepare(self, subjects: Sequence[Subject]) -> None:
        self.assistance.prepare([self.task.subject(prompt) for prompt, _ in subjects])

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        return self.assistance.notes(*self.task.subject(prompt))

    def account(self) -> dict[str, Any]:
        return self.assistance.account()


@dataclass(frozen=True)
class Assisted:
    """An overseer with notes: as objects for a `NoteReader`, else as delimited text after each response."""

    overseer: Overseer | NoteReader
    assistance: Assistance  # the source of notes

    @property
    def name(self) -> str:
        return self.overseer.name

    @property
    def limit(self) -> str:
        return self.overseer.limit

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        notes = [self.assistance.notes(prompt, response) for response in responses]
        if isinstance(self.overseer, NoteReader):
            return self.overseer.judge(prompt, responses, notes)
        shown = [with_notes(response, some) for response, some in zip(responses, notes, strict=True)]
        return self.overseer.compare(prompt, shown)

    def critique(self, prompt: Prompt, response: str) -> str:
        notes = self.assistance.notes(prompt, response)
        if isinstance(self.overseer, NoteReader):
            return self.overseer.explain(prompt, response, notes)
        return self.overseer.critique(prompt, with_notes(response, notes))


def _entry(helper: str, subject: Subject, text: str = "") -> dict[str, Any]:
    messages = [[message.role, message.content] for message in subject[0]]
    return {"helper": helper, "prompt": messages, "response": subject[1], "text": text}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    """The fields that identify a journal entry."""
    return entry["helper"], tuple(map(tuple, entry["prompt"])), entry["response"]
