"""Reads critiques, clause by clause, with `lexicon.yaml`: which aspect, wanted more or less, a fault or a merit.

A critique is data: nothing in it is followed or run, and only its first :data:`MOST_CHARACTERS` are read. In other
languages than English nothing is found. `scripts/bench/clauses.py` measures how often a reading is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from rrm_lm.feedback.criteria.detectors import DETECTORS

MOST_CHARACTERS = 20_000  # about 3,500 words
Wants = Literal["more", "less"]

# What the kinds of phrases mean: the wanted direction, and whether it is a merit.
_KINDS: Mapping[str, tuple[Wants, bool]] = {
    "too_much": ("less", False),
    "too_little": ("more", False),
    "good_less": ("less", True),
    "good_more": ("more", True),
}
_SPLIT = re.compile(
    r"(?<=[.!?;])\s+|\n+|,?\s+(?=(?:but|however|although|though|yet|whereas|while|except)\b)"
    r"|,\s+(?=(?:and|so|it|i|the|this|that|there|has|gives|does|is|not|with|which|uses|says|ends|starts)\b)"
    r"|\s+(?=and (?:it|i|the|this|that|there|has|gives|does|doesn't|is|provides|ends|starts|stops|begins|uses)\b)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'"([^"\n]{1,300})"|(?<!\w)\'([^\'\n]{2,300})\'(?!\w)')
_NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNTS = {name: n for n, name in enumerate(_NUMERALS)}
_COUNT = rf"(\d{{1,4}}|{'|'.join(_COUNTS)}|a single|a)"
_LIMIT = (
    r"(?:at (?:the )?(?:very )?most|no more than|not more than|(?:a )?maximum(?: of)?|up to|keep it to|limit(?:ed)? to|"
    r"under|below|than the)"
)
_UNIT = r"(?:short |full |good |plain )?(sentences?|words?)"
_RANGE = re.compile(rf"\b{_COUNT} (?:to|or|-|\u2013) {_COUNT}(?: {_UNIT}| (?:would|is|are)\b)")
_BETWEEN = re.compile(
    rf"\b(?:{_COUNT} {_UNIT} at least|at least {_COUNT} {_UNIT})(?:\W+(?:and|but)? ?{_LIMIT} {_COUNT})?|"
    rf"\b(?:no fewer|not less|more) than {_COUNT} {_UNIT}"
)
_MOST = re.compile(
    rf"\b(?:(?:{_LIMIT}|down to|(?:it|this|that) in) {_COUNT} {_UNIT}|"
    rf"{_COUNT} {_UNIT} (?:at (?:the )?most|or (?:less|fewer)|max\w*)|"
    rf"{_COUNT}(?: {_UNIT})? (?:is|are|would be|will be) (?:enough|plenty|sufficient))"
)


@dataclass(frozen=True, slots=True)
class Aspect:
    """An entry of the lexicon: statements, measures and the direction nearly everybody wants."""

    name: str
    statements: Mapping[str, str]  # by direction
    measures: tuple[str, ...]  # detectors, one with a minus sign if it falls with the aspect; or "question: ..."
    usual: str | None
    is_welcome: bool  # whether to have it is a merit
    phrases: Mapping[str, re.Pattern[str]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a clause says. `strength` is 1 for a plain statement; `target` holds limits in a unit (sentences, words) if
    the clause names some.
    """

    aspect: str
    wants: Wants
    is_merit: bool
    strength: float = 1.0
    target: tuple[float, float, str] | None = None


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))


@cache
def _cue(name: str) -> re.Pattern[str]:
    """A pattern of the lexicon's `cues`; its lines are joined."""
    return re.compile("".join(_file()["cues"][name].splitlines()))


@cache
def lexicon() -> dict[str, Aspect]:
    """The aspects by name."""
    found = {}
    for name, entry in _file().items():
        if name == "cues":
            continue
        phrases = {kind: _either(entry[kind]) for kind in (*_KINDS, "noun", "lacks") if entry.get(kind)}
        statements = {"more": entry["more"], "less": entry["less"]}
        found[name] = Aspect(
            name, statements, tuple(entry["measures"]), entry.get("usual"), bool(entry.get("welcome")), phrases
        )
        unknown = [one for one in entry["measures"] if one.lstrip("-") not in DETECTORS and ":" not in one]
        assert not unknown, unknown
    return found


def _either(lines: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(f'(?:{line})' for line in lines.splitlines())})(?!\w)")


def split_clauses(critique: str) -> list[str]:
    """The clauses of a critique; quoted text is not split."""
    text = critique[:MOST_CHARACTERS].translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'})
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match.group())
        return f"\ue000{len(kept) - 1}\ue001"

    text = re.sub(r"[^\S\n]+", " ", text)  # long runs would take the pattern quadratic time
    parts = _SPLIT.split(_QUOTED.sub(keep, text))
    whole = [re.sub("\ue000(\\d+)\ue001", lambda match: kept[int(match.group(1))], part) for part in parts if part]
    clauses: list[str] = []
    for part in whole:
        if clauses and _cue("comment").fullmatch(part.strip().lower()):
            clauses[-1] += f", {part.strip()}"  # "No list, that is good": the comment says what "no list" means
        elif re.search(r"\w", part):
            clauses.append(part.strip(" ,"))
    return clauses


def read_critique(critique: str) -> list[tuple[str, list[Reading]]]:
    """Each clause of a critique with its readings, the surest first; none if no aspect is recognized."""
    return [(clause, read_clause(clause)) for clause in split_clauses(critique)]


def read_clause(clause: str) -> list[Reading]:
    """The readings of one clause, the surest first: at most one per aspect, from parts that do not overlap."""
    text = _plain(clause)
    if _cue("about_the_question").match(text):
        return []
    found: list[tuple[float, int, int, str, Wants, bool]] = []
    for aspect in lexicon().values():
        for kind, (wants, is_merit) in _KINDS.items():
            if kind in aspect.phrases:
                for match in aspect.phrases[kind].finditer(text):
                    merit = _turned(text, match, is_merit)
                    found.append((2.0 + len(match.group()) / 100, *match.span(), aspect.name, wants, merit))
        for match in aspect.phrases["noun"].finditer(text) if "noun" in aspect.phrases else ():
            if (meant := _with_cues(text, match, aspect.is_welcome)) is not None:
                found.append((1.0 + len(match.group()) / 100, *match.span(), aspect.name, *meant))
        for match in aspect.phrases["lacks"].finditer(text) if "lacks" in aspect.phrases else ():
            found.append((0.5, *match.span(), aspect.name, "more", False))
    strength = 0.5 if _cue("mild").search(text) else 1.5 if _cue("strong").search(text) else 1.0
    readings: list[Reading] = []
    taken: list[tuple[int, int]] = []
    found = [one for one in found if one[0] >= 1] or found  # what it lacks only if it says nothing more specific
    inside = [any(a[1] <= b[1] and b[2] <= a[2] and a[2] - a[1] > b[2] - b[1] for a in found) for b in found]
    found = [one for one, is_inside in zip(found, inside, strict=True) if not is_inside]
    for _, start, end, name, wants, merit in sorted(found, key=lambda one: (-one[0], one[1])):
        if any(start < other_end and other < end for other, other_end in taken):
            continue
        if name not in [one.aspect for one in readings]:
            readings.append(Reading(name, wants, merit, strength))
            taken.append((start, end))
    if (target := _target(text)) is not None:
        wants, readings = "less" if target[0] == 0 else "more", [one for one in readings if one.aspect != "length"]
        is_merit = bool(_cue("liked").search(text)) and not _cue("unfit").search(text)
        readings.insert(0, Reading("length", wants, is_merit, strength, target))
    return readings


def _plain(clause: str) -> str:
    """A clause for matching: lower case, and quotations replaced by what they are."""

    def kind(match: re.Match[str]) -> str:
        quoted = match.group(1) or match.group(2)
        for name, stands_for in (("friendly_close", "let me know"), ("filler_opening", "great question")):
            if DETECTORS[name].measure(quoted, ""):
                return f'"{stands_for}"'
        return '"..."'

    text = clause.translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'})
    return re.sub(r"\s+", " ", _QUOTED.sub(kind, text)).strip().lower().replace("more or less ", "")


def _turned(text: str, match: re.Match[str], is_merit: bool) -> bool:
    """Whether a phrase is a merit after negations and modal verbs before it."""
    before = text[: match.start()]
    if not is_merit and (_cue("unwanted").search(before) or re.search(r"\b(?:instead of|rather than) $", before)):
        return False
    near = " ".join(re.split("[,;:]| and ", _cue("not_only").sub("", before))[-1].split()[-5:])
    if len(_cue("negation").findall(near)) % 2 == 1:
        return not is_merit
    if is_merit and match.start() == 0 and _cue("imperative").match(text):
        return False
    return is_merit and not _cue("modal").search(" ".join(before.split()[-5:]))


def _with_cues(text: str, match: re.Match[str], is_welcome: bool) -> tuple[Wants, bool] | None:
    """The direction and verdict of the name of an aspect, by the words around it; None if they do not say."""
    before, after = " ".join(text[: match.start()].split()[-6:]), text[match.end() :]
    near, rest = " ".join(before.split()[-4:]), " ".join(after.split()[:8])
    liked = _cue("liked").search(text[: match.start()]) or _cue("liked").search(rest)
    if (
        re.search(r"\b(?:no|without|not|never|zero|instead of|rather than)\b[^,]*$", near)
        and liked
        and not _cue("excess").search(re.sub(r"instead of|rather than", "", near))
    ):
        return "less", True
    if _cue("excess").search(before) or _cue("excess_after").search(after):
        return "less", False
    if re.search(r"\bno (?:\w+ )?$", before + " ") and re.search(r"\bplease\b", rest):
        return "less", False
    if _cue("lack").search(near) or _cue("lack_after").search(after):
        return "more", False
    if liked or (is_welcome and _cue("has").search(near)):
        return "more", True
    return None


def _target(text: str) -> tuple[float, float, str] | None:
    """Limits in sentences or words that a clause asks for."""
    if found := _RANGE.search(text):
        low, high, unit = found.groups()
        return _number(low), _number(high), _unit(unit)
    if found := _BETWEEN.search(text):
        first, unit, second, other_unit, most, third, third_unit = found.groups()
        low, high = _number(first or second or third), _number(most) if most else float("inf")
        return low, high, _unit(unit or other_unit or third_unit)
    if found := _MOST.search(text):
        counts, units = found.groups()[::2], found.groups()[1::2]
        return 0.0, _number(next(filter(None, counts))), _unit(next(filter(None, units), None))
    return None


def _number(word: str) -> float:
    return float(_COUNTS.get(word, 1 if word.startswith("a") else word))


def _unit(word: str | None) -> str:
    return (word or "sentence").rstrip("s") + "s"


def statement(aspect: str, wants: Any) -> str:
    """What a criterion says in words."""
    return lexicon()[aspect].statements[wants]
