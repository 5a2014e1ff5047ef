"""Assistance: what helpers tell whoever judges, and what is done so that a bad helper does little harm.

Two shapes of help behind one interface: every helper writes a note (`HelperNotes`), or one helper points at the worst
flaw and the overseer judges only whether it is real (`WorstFlaw`). The overseer decides what to do with notes; a
program decides which it gets to see: those that can be read, and quote what stands in the response. A helper that says
nothing, or the same thing about everything, is named and its notes weigh nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rrm_lm.feedback.asking.journal import Journal
from rrm_lm.feedback.asking.overseers import Overseer, Verdict
from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.notes import Note, is_verbatim, shortened, with_notes
from rrm_lm.recursion.oversight import FlawJudge, NoteReader
from rrm_lm.recursion.tasks import NOTHING, NoteTask, PointTask

logger = logging.getLogger(__name__)

Subject = tuple[Prompt, str]  # a prompt and the response to it that notes are on
ENOUGH = 12  # different responses from which on saying the same thing about all of them is no chance
_CHUNK = 64  # responses that a helper is asked about at once; answers are kept after each


class Helper(Protocol):
    """An agent that writes notes."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Any: ...

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        """One response to each prompt."""
        ...


class Assistance(Protocol):
    """Where notes come from."""

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Get the notes on these ready. Whether a helper is of use is judged by all of them together."""
        ...

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        """The notes on a response that was prepared."""
        ...

    def account(self) -> dict[str, Any]:
        """What became of everything that helpers wrote."""
        ...


class Unassisted:
    """No help: the overseer alone."""

    def prepare(self, subjects: Sequence[Subject]) -> None:
        pass

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        return ()

    def account(self) -> dict[str, Any]:
        return {}


@dataclass
class Heard:
    """What one helper wrote, and what became of it.

    Attributes:
        notes: By response, the note; None where there is none that may be shown.
        asked: Responses that it was asked about.
        unreadable: Answers that were no note.
        false_quotations: Notes whose quotation does not stand in the response. They are dropped.
        cut: Notes whose quotation was longer than is kept.
        whole: Notes that quote all of a response of which less can be quoted.
        ignored: Why its notes weigh nothing; "" where they count.
    """

    notes: dict[Subject, Note | None] = field(default_factory=dict)
    asked: int = 0
    unreadable: int = 0
    false_quotations: int = 0
    cut: int = 0
    whole: int = 0
    ignored: str = ""

    def hear(self, task: NoteTask, subject: Subject, text: str) -> None:
        """Take in one answer."""
        self.asked += 1
        note = task.read(text)
        self.unreadable += note is None
        if note is not None and not is_verbatim(note, subject[1]):
            self.false_quotations += 1
            note = None
        self.whole += note is not None and _quotes_all(task, subject, note)
        if note is not None and shortened(note) != note:
            self.cut += 1
            note = shortened(note)
        self.notes[subject] = note

    def fault(self) -> str:
        """Why nothing can be learned from these notes; "" if something can."""
        given = [note for note in self.notes.values() if note is not None]
        if len(self.notes) < ENOUGH:
            return ""
        if not given:
            return "answers nothing"
        if self.whole == len(given):
            return "quotes everything"
        verdicts = {note.verdict for note in given}
        return f"always says {verdicts.pop()!r}" if len(verdicts) == 1 and len(given) >= ENOUGH else ""

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

    Whether a helper is of use is judged once, by the responses that are prepared first, and stays so: what a reward
    that reads notes gives to a response must not depend on what else was scored.

    Args:
        helpers: Who writes.
        path: Where their answers are kept as they come, so that none is asked for twice; None keeps them in memory.
        ignored: By helper, why its notes weigh nothing, as it was judged before; None judges.
    """

    def __init__(
        self, helpers: Sequence[Helper], path: Path | None = None, ignored: Mapping[str, str] | None = None
    ) -> None:
        self.helpers, self.path, self._judged = tuple(helpers), path, ignored is not None
        self.heard = {helper.name: Heard(ignored=(ignored or {}).get(helper.name, "")) for helper in helpers}

    def prepare(self, subjects: Sequence[Subject]) -> None:
        distinct = list(dict.fromkeys(subjects))
        with Journal(self.path, {"notes_by": [helper.name for helper in self.helpers]}) as journal:
            known = {_key(entry): str(entry["text"]) for entry in journal.entries}
            for helper in self.helpers:
                heard = self.heard[helper.name]
                left = [subject for subject in distinct if subject not in heard.notes]
                new = [subject for subject in left if _entry_key(helper.name, subject) not in known]
                for start in range(0, len(new), _CHUNK):
                    chunk = new[start : start + _CHUNK]
                    answers = helper.respond([helper.task.ask(*subject) for subject in chunk])
                    for subject, text in zip(chunk, answers, strict=True):
                        entry = _entry(helper.name, subject, text)
                        journal.add(entry)
                        known[_key(entry)] = text
                for subject in left:
                    heard.hear(helper.task, subject, known[_entry_key(helper.name, subject)])
                if not self._judged:
                    self._judge(helper.name, heard)
        self._judged = True

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        found = (self.heard[helper.name] for helper in self.helpers)
        shown = [heard.notes[prompt, response] for heard in found if not heard.ignored]
        return tuple(note for note in shown if note is not None)

    def account(self) -> dict[str, Any]:
        return {name: heard.to_dict() for name, heard in self.heard.items()}

    def _judge(self, name: str, heard: Heard) -> None:
        heard.ignored = heard.fault()
        if heard.ignored:
            logger.warning("the helper %s %s: its notes weigh nothing", name, heard.ignored)


class WorstFlaw:
    """One helper points at the worst flaw; the overseer looks there, and only what is real counts.

    Args:
        pointer: Who points; its task is a `PointTask`.
        judge: Who says whether a flaw is real. Each answer is a check.
        path, ignored: As of `HelperNotes`.
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
        """Places that the overseer is pointed at, each of which it looks at once."""
        return sum(len(self._flaws(*subject)) for subject in self._subjects)

    def account(self) -> dict[str, Any]:
        real = sum(len(self.notes(*subject)) for subject in self._subjects)
        return self.pointed.account() | {"looks": self.looks, "real": real}

    @property
    def _subjects(self) -> list[Subject]:
        return list(self.pointed.heard[self.pointer.name].notes)

    def _flaws(self, prompt: Prompt, response: str) -> list[Note]:
        return [note for note in self.pointed.notes(prompt, response) if note.verdict != NOTHING]


@dataclass(frozen=True)
class AboutSubject:
    """Help for a helper's overseer: its helpers are asked about the response that a note is on, not about the note.

    Attributes:
        assistance: Where notes come from.
        task: The helper's task.
    """

    assistance: Assistance
    task: NoteTask

    def prepare(self, subjects: Sequence[Subject]) -> None:
        self.assistance.prepare([self.task.subject(prompt) for prompt, _ in subjects])

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        return self.assistance.notes(*self.task.subject(prompt))

    def account(self) -> dict[str, Any]:
        return self.assistance.account()


@dataclass(frozen=True)
class Assisted:
    """An overseer with help. One who reads notes by itself gets them as they are; any other as delimited text.

    Attributes:
        overseer: Who judges.
        assistance: Where notes come from.
    """

    overseer: Overseer | NoteReader
    assistance: Assistance

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


def _quotes_all(task: NoteTask, subject: Subject, note: Note) -> bool:
    """Whether a note quotes a whole response of which less could be quoted."""
    whole = subject[1].strip()
    return note.quote.strip() == whole and any(piece.strip() != whole for piece in task.evidence(*subject))


def _entry(helper: str, subject: Subject, text: str) -> dict[str, Any]:
    messages = [[message.role, message.content] for message in subject[0]]
    return {"helper": helper, "prompt": messages, "response": subject[1], "text": text}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["helper"], tuple(map(tuple, entry["prompt"])), entry["response"]


def _entry_key(helper: str, subject: Subject) -> tuple[Any, ...]:
    return _key(_entry(helper, subject, ""))
