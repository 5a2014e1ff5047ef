"""The plain user's (`plain_user.py`) judgment of a response, and its wording as a critique, with many variants.

`plain_words.json` has the phrases. Each fault has three kinds: predicates ("rambles on for five sentences"), sentences,
and advice; each merit has the first two. Braces in a phrase are filled in. A critique names the costliest faults first,
and usually one merit.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

MOST_WORDS = 40
LEAST_WORDS = 8
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

_BANK = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FAULTS: dict[str, dict[str, list[str]]] = _BANK["faults"]
MERITS: dict[str, dict[str, list[str]]] = _BANK["merits"]
_APPROVAL: list[str] = _BANK["approval"]

WEIGHTS: dict[str, float] = {
    "answer": 0.35,
    "short": 0.20,
    "close": 0.15,
    "opening": 0.13,
    "prose": 0.12,
    "whole": 0.05,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The user's judgment of one response."""

    parts: dict[str, float]  # score of each part of `WEIGHTS`, from 0 (missing) to 1 (as wanted)
    missing: tuple[str, ...]  # groups of words that do not occur
    sentences: int  # number of sentences, not counting a friendly close
    words: int
    items: int  # number of list items and headings
    opening: str  # the filler at the start; "" if none
    close: str  # the friendly close; "" if none
    tail: str  # the last words if it ends mid-sentence, else ""

    @property
    def gold(self) -> float:
        """The weighted sum of the parts, 0 to 1."""
        return round(sum(weight * self.parts[part] for part, weight in WEIGHTS.items()), 6)


def critique(judgement: Judgement, seed: str) -> str:
    """Write a critique of 8 to 40 words. Equal seeds give equal words."""
    rng = random.Random(seed)
    facts = _facts(judgement, rng)
    faults = _faults(judgement, rng)
    merits = _merits(judgement, rng)
    if not faults:
        pieces = _praise(merits, rng)
    else:
        merits = merits[: rng.choice((0, 1, 1))] if len(faults) > 1 else merits[:1]
        pieces = _mixed(faults, merits, rng)
    said = [_fill(piece, facts) for piece in pieces]
    return _fit([text[:1].upper() + text[1:] for text in said], [_fill(p, facts) for p in _spare(faults, rng)])


def _faults(judgement: Judgement, rng: random.Random) -> list[str]:
    """Names of the faults, roughly by cost, the costliest first."""
    parts, found = judgement.parts, []
    if parts["answer"] < 1:
        found.append(("off_point", 0.35) if parts["answer"] == 0 else ("half_point", 0.35 * (1 - parts["answer"])))
    if parts["short"] < 0.9:
        found.append(("long" if judgement.sentences > 2 else "wordy", 0.20 * (1 - parts["short"])))
    if not parts["close"]:
        found.append(("no_close", 0.15))
    if not parts["opening"]:
        found.append(("filler", 0.13))
    if parts["prose"] < 1:
        found.append(("list", 0.12) if parts["prose"] == 0 else ("bold", 0.06))
    if not parts["whole"]:
        found.append(("unfinished", 0.05))
    found.sort(key=lambda fault: -fault[1] * rng.uniform(0.6, 1.4))
    return [name for name, _ in found]


def _merits(judgement: Judgement, rng: random.Random) -> list[str]:
    """Names of the merits in random order, with a tendency for the answer and the close to come first."""
    found = [part for part in MERITS if judgement.parts[part] >= 0.9]
    return sorted(found, key=lambda part: rng.random() - 0.4 * (part in ("answer", "close")))


def _praise(merits: list[str], rng: random.Random) -> list[str]:
    chosen = merits[: rng.choice((2, 3))]
    said = [rng.choice(MERITS[name]["said"]) for name in chosen]
    if rng.random() < 0.5:
        return [rng.choice(("It ", "This ", "The reply ")) + _join(said) + ".", *rng.sample(_APPROVAL, 1)]
    start = rng.choice(("Just what I wanted: it ", "Very good, it ", "I like this: it ", "Well done, it "))
    return [start + _join(said) + "."]


def _mixed(faults: list[str], merits: list[str], rng: random.Random) -> list[str]:
    said = [rng.choice(FAULTS[name]["said"]) for name in faults]
    own = [rng.choice(FAULTS[name]["sentences"]) for name in faults]
    good = rng.choice(MERITS[merits[0]]["said"]) if merits else ""
    subject = rng.choice(("It ", "This ", "The reply ", "This answer "))
    style = rng.random()
    if style < 0.30:  # one sentence about all
        first = f"{subject}{good}, but it {_join(said[:3])}." if good else f"{subject}{_join(said[:3])}."
        return [first, *own[3:]]
    if style < 0.60:  # a sentence for each
        return [*own, *([rng.choice(MERITS[merits[0]]["sentences"])] if merits else [])]
    if style < 0.80:  # the worst in full, the rest in short
        first = f"{subject}{said[0]}."
        rest = [rng.choice(("It also ", "Also, it ", "And it ")) + _join(said[1:3]) + "."] if len(said) > 1 else []
        return [first, *rest, *own[3:], *([rng.choice(MERITS[merits[0]]["sentences"])] if merits else [])]
    advice = rng.choice(FAULTS[faults[0]]["advice"])
    start = f"{subject}{good}, but it {said[0]}." if good else f"{subject}{said[0]}."
    return [start, *own[1:3], advice, *own[3:]]


def _spare(faults: list[str], rng: random.Random) -> list[str]:
    """Sentences to add to a critique that is too short."""
    return [rng.choice(FAULTS[faults[0]]["advice"])] if faults else rng.sample(_APPROVAL, 2)


def _fit(pieces: list[str], spare: list[str]) -> str:
    """Join the first piece and those that fit into `MOST_WORDS`; spare pieces fill up to `LEAST_WORDS`."""
    text = pieces[0]
    for piece in pieces[1:]:
        if len(f"{text} {piece}".split()) <= MOST_WORDS:
            text = f"{text} {piece}"
    for piece in spare:
        if len(text.split()) < LEAST_WORDS and piece not in text:
            text = f"{text} {piece}"
    return text


def _facts(judgement: Judgement, rng: random.Random) -> dict[str, str]:
    return {
        "named": _named(judgement.missing, rng),
        "count": _number(judgement.sentences),
        "words": str(max(10, round(judgement.words / 10) * 10)),
        "items": _number(judgement.items),
        "opening": judgement.opening,
        "close": judgement.close.rstrip("."),
        "tail": judgement.tail,
    }


def _named(missing: tuple[str, ...], rng: random.Random) -> str:
    """Plain words for one of the missing groups."""
    if not missing:
        return "it"
    group = rng.choice(missing)
    words = [word for word in group.split("|") if re.fullmatch(r"[^\W\d][\w' /-]{2,}", word)]
    if not words:
        return "the right number"
    if len(words) == 1 or len(group.split("|")) <= 3:
        return f'"{words[0]}"'
    first, second = rng.sample(words[:4], 2)
    return f'"{first}" or "{second}"'


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _fill(phrase: str, facts: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: facts[match.group(1)], phrase)
