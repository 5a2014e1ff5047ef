"""Finds the criteria that critiques name: how often, in which direction, with quotations, and how each is measured."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rrm_lm.feedback.criteria.detectors import DETECTORS, split_words
from rrm_lm.feedback.criteria.reader import MOST_CHARACTERS, Aspect, Reading, lexicon, read_critique
from rrm_lm.feedback.criteria.records import WEIGHT, Criterion, Quotation
from rrm_lm.feedback.records import Comparison, Correction, Critique, Prompt, Record

QUOTATIONS = 3
_FEWEST = 8  # responses with a fault, and without one, before another measure than the preferred one is chosen
_BETTER = 0.05  # how much more of the area under the curve it must have
_RARE = 0.005  # criteria that a smaller share of the read clauses names are listed, but not written
_TARGETS = 0.2  # share of the clauses about length that must give limits for these to be the target


@dataclass(frozen=True, slots=True)
class Said:
    """A clause about one response."""

    clause: str
    reading: Reading
    response: tuple[Prompt, str]
    where: str


@dataclass(frozen=True, slots=True)
class Found:
    """A criterion and how well its measure agrees with the critiques."""

    criterion: Criterion
    merits: int
    contradicted: int  # responses whose critiques want both more and less of it
    agreement: float | None  # area under the ROC curve: 0.5 is chance, 1 if it is worse wherever people complained
    compared: int  # responses with a fault in it


@dataclass(slots=True)
class Findings:
    """What the critiques of a set of feedback say."""

    found: list[Found] = field(default_factory=list)  # the most frequent first
    uncovered: Counter[str] = field(default_factory=Counter)  # clauses that no criterion covers
    critiques: int = 0
    cut: int = 0  # critiques of which only the first MOST_CHARACTERS are read
    clauses: int = 0
    read: int = 0  # clauses that name an aspect

    @property
    def criteria(self) -> list[Criterion]:
        """The criteria that are not rare."""
        return [one.criterion for one in self.found if one not in self.rare]

    @property
    def rare(self) -> list[Found]:
        """The criteria that very few clauses name, often because they were misread."""
        return [one for one in self.found if one.criterion.named < _RARE * self.read]


def critiques_of(records: Iterable[Record]) -> Iterable[tuple[Prompt, str, str, str]]:
    """Each distinct critique of a response: (prompt, response, critique, origin)."""
    seen = set()
    for record in records:
        if isinstance(record, Comparison):
            sides = ((record.chosen, record.chosen_critiques), (record.rejected, record.rejected_critiques))
            texts = [(response, text) for response, critiques in sides for text in critiques]
        elif isinstance(record, Critique | Correction):
            texts = [(record.response, record.critique)] if record.critique else []
        else:
            texts = []
        for response, text in texts:
            if (record.prompt, response, text) not in seen:
                seen.add((record.prompt, response, text))
                yield record.prompt, response, text, str(record.origin)


def find_criteria(records: Iterable[Record]) -> Findings:
    """Read all critiques of the records."""
    findings = Findings()
    by_aspect: dict[str, list[Said]] = {}
    responses: dict[tuple[Prompt, str], None] = {}
    for prompt, response, text, origin in critiques_of(records):
        findings.critiques += 1
        findings.cut += len(text) > MOST_CHARACTERS
        responses.setdefault((prompt, response))
        for clause, readings in read_critique(text):
            findings.clauses += 1
            findings.read += bool(readings)
            if not readings and len(clause.split()) > 2:
                findings.uncovered[clause] += 1
            for reading in readings:
                by_aspect.setdefault(reading.aspect, []).append(Said(clause, reading, (prompt, response), origin))
    most = max(map(len, by_aspect.values()), default=1)
    for name, said in sorted(by_aspect.items(), key=lambda item: -len(item[1])):
        used = {one.criterion.measure for one in findings.found}
        findings.found.append(_found(lexicon()[name], said, list(responses), len(said) / most, used))
    return findings


def _found(
    aspect: Aspect, said: Sequence[Said], responses: Sequence[tuple[Prompt, str]], share: float, used: set[str]
) -> Found:
    wants = Counter(one.reading.wants for one in said)
    wanted = "more" if wants["more"] >= wants["less"] else "less"
    agreeing = [one for one in said if one.reading.wants == wanted]
    faulty = {one.response for one in agreeing if not one.reading.is_merit}
    praised = {one.response for one in agreeing if one.reading.is_merit}
    target, unit = _target(said)
    if target is not None:
        options = [Criterion(_in_words(target, unit), aspect.name, unit, "target", target)]
    else:
        free = [measure for measure in aspect.measures if measure.lstrip("-") not in used]
        options = [_measured(aspect, measure, wanted) for measure in free or aspect.measures]
    others = (
        list(praised - faulty) if len(praised - faulty) >= _FEWEST else [one for one in responses if one not in faulty]
    )
    scores = [_agreement(option, list(faulty), others) for option in options]
    best = 0
    if min(len(faulty), len(others)) >= _FEWEST:
        for number, score in enumerate(scores):
            if score is not None and score[0] > (scores[best] or (0.5, 0.0))[0] + _BETTER:
                best = number
    both: dict[tuple[Prompt, str], set[str]] = defaultdict(set)
    for one in said:
        both[one.response].add(one.reading.wants)
    count, against = (len(said), 0) if target is not None else (len(agreeing), len(said) - len(agreeing))
    # Shrunk if few named it, if they disagree, if others are named much more often, or if the measure does not fire.
    strength = sum(one.reading.strength for one in agreeing) / max(len(agreeing), 1)
    prior = 2 * WEIGHT * strength * (count - against) / (count + against + 2) * math.sqrt(share)
    agreement, ties = scores[best] or (None, 1.0)
    if agreement is not None and ties < 1:  # of pairs that tie nothing is learned: few complain of all that they miss
        fewest = (1 - ties) * min(len(faulty), len(others))
        decided = (agreement - ties / 2) / (1 - ties)
        seen = fewest / (fewest + _FEWEST)
        prior *= 1 - seen + seen * min(max(4 * (decided - 0.5), 0.0), 1.0)
    chosen = options[best]
    criterion = Criterion(
        chosen.statement,
        aspect.name,
        chosen.measure,
        chosen.direction,
        chosen.target,
        round(prior, 3),
        named=count,
        faults=sum(not one.reading.is_merit for one in (said if target is not None else agreeing)),
        against=against,
        quotations=_quotations(agreeing),
    )
    contradicted = sum(len(directions) == 2 for directions in both.values())
    return Found(criterion, count - criterion.faults, contradicted, agreement, len(faulty))


def as_criteria(reading: Reading) -> list[Criterion]:
    """What a clause wants, by each measure of its aspect, or by the limits that it gives."""
    if reading.target is not None:
        low, high, unit = reading.target
        return [Criterion(_in_words((low, high), unit), reading.aspect, unit, "target", (low, high))]
    aspect = lexicon()[reading.aspect]
    return [_measured(aspect, measure, reading.wants) for measure in aspect.measures]


def _measured(aspect: Aspect, measure: str, wanted: str) -> Criterion:
    falls = measure.startswith("-")
    direction = {"more": "less", "less": "more"}[wanted] if falls else wanted
    return Criterion(aspect.statements[wanted], aspect.name, measure.lstrip("-"), direction)  # type: ignore[index]


def _target(said: Sequence[Said]) -> tuple[tuple[float, float] | None, str]:
    """The median limits of the unit that most clauses name, if enough of them name limits."""
    targets = [one.reading.target for one in said if one.reading.target is not None]
    if len(targets) < max(1, _TARGETS * len(said)):
        return None, ""
    unit = Counter(unit for _, _, unit in targets).most_common(1)[0][0]
    limits = [(low, high) for low, high, one in targets if one == unit]
    low, high = (sorted(side)[len(limits) // 2] for side in zip(*limits, strict=True))
    return ((low, high), unit) if low <= high else (None, "")


def _in_words(target: tuple[float, float], unit: str) -> str:
    low, high = target
    if low <= 0:
        return f"has at most {high:g} {unit}"
    return f"has at least {low:g} {unit}" if math.isinf(high) else f"has {low:g} to {high:g} {unit}"


def _agreement(
    criterion: Criterion, faulty: Sequence[tuple[Prompt, str]], others: Sequence[tuple[Prompt, str]]
) -> tuple[float, float] | None:
    """How often the measure is worse for a response with the fault than for one without, where ties count half; and the
    share of ties. None for measures that are no detectors, or without responses of both kinds.
    """
    if criterion.measure not in DETECTORS or not faulty or not others:
        return None
    measure = DETECTORS[criterion.measure].measure
    bad, good = (
        np.sort([criterion.value(measure(r, p[-1].content if p else "")) for p, r in group])
        for group in (faulty, others)
    )
    lower, upper = (np.searchsorted(good, bad, side).mean() / len(good) for side in ("left", "right"))
    return float(1 - (lower + upper) / 2), float(upper - lower)


def _quotations(said: Sequence[Said]) -> tuple[Quotation, ...]:
    """Typical clauses that differ: those whose words occur often in all of them, faults first, of a readable length."""
    counts = Counter(word for one in said for word in {*split_words(one.clause)})
    texts = Counter(one.clause.lower() for one in said)

    def typical(one: Said) -> tuple[bool, float]:
        used = {*split_words(one.clause)}
        is_readable = 3 <= len(used) <= 20
        return is_readable, texts[one.clause.lower()] + sum(counts[word] for word in used) / max(len(used), 4) / 10

    chosen: list[Said] = []
    for one in sorted(said, key=typical, reverse=True):
        words = {*split_words(one.clause)}
        if all(len(words & {*split_words(c.clause)}) < 0.6 * len(words | {*split_words(c.clause)}) for c in chosen):
            chosen.append(one)
        if len(chosen) == QUOTATIONS:
            break
    return tuple(Quotation(one.clause, one.where) for one in chosen)
