"""Notes and the questions about them, from the patterns in the YAML files next to this one.

Every note has two values of each type that is asked about, and both are asked for equally often: each is the right
answer to one question and the wrong answer to another. No pattern and no value stands in two parts.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SEED = 0
NOTES = {"train": 150, "validation": 50, "test": 70}  # and those written by hand, which belong to test
MORE_NOTES = 360  # of the patterns of train.yaml and more.yaml
_GAP = re.compile(r"\{(\w+)(?:=([^}]*))?\}")
_STOP_WORDS = """
    a an the of to in on at is are be for and or it its by from with that this which who whom whose what when where how
    many much do does did i we you he she they my our your his her me us them if as not no but so has have had will
    would can may must one
"""
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class Question:
    """A question about a note, as a row of the files.

    Attributes:
        part: "train", "validation" or "test".
        note_id: Which note, for example "test-12".
        pattern: Which pattern the note was made from.
        wording: "plain" (in the words of the note), "task", or "hard" (shares more words with the other sentence).
        first: Whether the right value stands before the other one.
        say: A full answer with `{}` for the value.
    """

    part: str
    note_id: str
    pattern: str
    topic: str
    form: str
    note: str
    question: str
    wording: str
    kind: str
    value: str
    other: str
    first: bool
    say: str

    def row(self) -> dict:
        """As it stands in the file."""
        return {
            "part": self.part,
            "note_id": self.note_id,
            "pattern": self.pattern,
            "topic": self.topic,
            "form": self.form,
            "wording": self.wording,
            "prompt": f"{self.note}\n\n{self.question}",
            "note": self.note,
            "question": self.question,
            "kind": self.kind,
            "value": self.value,
            "others": [self.other],
            "first": self.first,
            "say": self.say,
        }


def questions() -> list[Question]:
    """All 900 questions, train first. The same at every call."""
    return [question for part in ("train", "validation", "test") for question in _part(part)]


def _part(part: str) -> Iterator[Question]:
    values = _read("values")[part]
    patterns = [(f"{part}{number}", pattern) for number, pattern in enumerate(_read(part))]
    rng = random.Random(f"{SEED} {part}")
    made = [patterns[number % len(patterns)] for number in range(NOTES[part])]
    if part == "test":
        made += [(f"byhand{number}", pattern) for number, pattern in enumerate(_read("byhand"))]
    wordings = itertools.cycle(("plain", "task", "hard"))
    turns: dict[str, int] = {}
    for number, (name, pattern) in enumerate(made):
        turn = turns[name] = turns.get(name, -1) + 1
        yield from _ask(part, number, name, pattern, _filled(pattern, values, rng), turn, wordings)


def more_questions() -> list[Question]:
    """Questions for training alone, on all values that a pattern asks for: in other notes of the training patterns, and
    in notes of more patterns. The same at every call.
    """
    values, patterns = _read("values")["train"], [*_read("train"), *_read("more")]
    rng = random.Random(f"{SEED} more")
    wordings = itertools.cycle(("plain", "task", "hard"))
    found: list[Question] = []
    for number in range(MORE_NOTES):
        place = number % len(patterns)
        filled = _filled(patterns[place], values, rng)
        kinds = {gap[:-1] for gap in filled}
        found += _ask("more", number, f"more{place}", patterns[place], filled, 0, wordings, most=len(kinds))
        if place == len(patterns) - 1:
            next(wordings)  # another wording of each question in the next round
    return found


def _ask(
    part: str, number: int, name: str, pattern: Mapping, filled: Mapping[str, str], turn: int, wordings: Iterator[str],
    most: int | None = None,
) -> Iterator[Question]:  # fmt: skip
    """Two questions on each of `most` types of values in a note (one or two if None): on both values of the type, so
    that a guess is right half the time.
    """
    kinds = sorted({gap[:-1] for gap in filled})
    chosen = [kinds[(turn + step) % len(kinds)] for step in range(most or 1 + number % 2)]
    note = _GAP.sub(lambda match: filled[match[1]], pattern["note"])
    note = note[:1].upper() + note[1:]
    by_hand = name.startswith("byhand")
    asked = [
        (kind, w) for kind in dict.fromkeys(chosen) for w in (("plain", "hard") if by_hand and number % 2 else (None,))
    ]
    for kind, fixed in asked:
        pair = (f"{kind}1", f"{kind}2")
        for gap, other in (pair, pair[::-1]):
            lines = pattern["facts"][gap]
            wording = fixed or next(wordings)
            if wording == "task" and len(lines) == 3:
                wording = "plain"
            line = {"plain": 1, "task": 2, "hard": len(lines) - 1}[wording]
            before = pattern["note"].index("{" + gap) < pattern["note"].index("{" + other)
            yield Question(
                part, f"{part}-{number}", name, pattern["topic"], pattern["kind"], note, lines[line], wording, kind,
                filled[gap], filled[other], before, lines[0],
            )  # fmt: skip


def _filled(pattern: Mapping, values: Mapping[str, Sequence[str]], rng: random.Random) -> dict[str, str]:
    """A value for every gap of a note, no value twice; values that stand in the pattern are kept."""
    filled: dict[str, str] = {}
    for gap, fixed in _GAP.findall(pattern["note"]):
        free = [value for value in values[gap[:-1]] if value not in filled.values()]
        filled[gap] = fixed or rng.choice(free)
    for kind in ("date", "time"):  # in the order in which they happen, as notes are written
        gaps = [gap for gap, fixed in _GAP.findall(pattern["note"]) if gap[:-1] == kind and not fixed]
        filled |= dict(zip(sorted(gaps), sorted((filled[gap] for gap in gaps), key=values[kind].index), strict=True))
    return filled


def _read(name: str) -> Any:
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def by_overlap(question: Question) -> str:
    """The value in the sentence that shares most words with the question; the first one if both share as many.

    The strongest simple rule: `hard` questions are worded such that it fails.
    """
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\d])", question.note)
    asked = stems(question.question)

    def shared(value: str) -> int:
        return max(
            (len(asked & stems(s.replace(value, " "))) for s in sentences if value.lower() in s.lower()), default=0
        )

    in_order = (question.value, question.other) if question.first else (question.other, question.value)
    return max(in_order, key=shared)


def stems(text: str) -> set[str]:
    words = (word for word in re.findall(r"[a-z0-9']+", text.lower()) if word not in _STOP)
    return {re.sub(r"(ing|ed|es|s)$", "", word) if len(word) > 4 else word for word in words}
