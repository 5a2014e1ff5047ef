"""Follow-through: does a response get a higher reward once the fault that a person named in it is fixed?

A clause of a critique that finds a fault names an aspect and a direction (`feedback.criteria.reader`). Where an edit
moves a measure of this aspect in that direction (`feedback.criteria.edits`), the response and its edited version differ
in little else, so the share of edits with the higher reward shows whether the reward does what people said. Chance is
50%. Edits that take text from other responses are left out: they would fix nothing that a person complains of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rrm_lm.evaluation.preferences.scorers import ResponseScorer
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.evaluation.statistics.metrics import Estimate
from rrm_lm.feedback.criteria.edits import edited
from rrm_lm.feedback.criteria.finding import as_criteria
from rrm_lm.feedback.criteria.reader import Reading, read_critique
from rrm_lm.feedback.records import Comparison, Prompt


@dataclass(frozen=True, slots=True)
class Fixed:
    """A response in which a critique found a fault, and an edit of it without that fault."""

    prompt: Prompt
    prompt_id: str
    response: str
    edit: str
    aspect: str
    clause: str


@dataclass(frozen=True, slots=True)
class FollowThrough:
    """How often the edit has the higher reward; ties count half."""

    overall: Estimate
    by_aspect: Mapping[str, Estimate]  # the most frequent first
    faults: int  # clauses that find a fault
    example: tuple[str, str, str] | None = None  # a clause, the response and its edit where the reward did not follow


def fixed_faults(comparisons: Sequence[Comparison]) -> tuple[list[Fixed], int]:
    """The faults that an edit fixes, each edit of a response once, and the number of clauses that find a fault."""
    found: dict[tuple[Prompt, str, str], Fixed] = {}
    faults = 0
    for one in comparisons:
        for response, critiques in ((one.chosen, one.chosen_critiques), (one.rejected, one.rejected_critiques)):
            for clause, reading in _complaints(critiques):
                faults += 1
                edit = _fixed(reading, one.prompt, response)
                if edit:
                    fixed = Fixed(one.prompt, one.prompt_id, response, edit, reading.aspect, clause)
                    found.setdefault((one.prompt, response, edit), fixed)
    return list(found.values()), faults


def follow_through(scorer: ResponseScorer, comparisons: Sequence[Comparison]) -> FollowThrough | None:
    """The follow-through of a reward on comparisons with critiques; None if no edit fixes a fault that they find, or no
    pair of a response and its edit has rewards. What the scorer would truncate is left out: an edit may be cut off.
    """
    fixed, faults = fixed_faults(comparisons)
    fits = getattr(getattr(scorer, "scorer", scorer), "fits", None)  # of a cached scorer, its model's
    if fits is not None:
        fixed = [one for one in fixed if fits(one.prompt, one.response) and fits(one.prompt, one.edit)]
    scores = scorer.score([one.prompt for one in fixed], [[one.response, one.edit] for one in fixed]) if fixed else []
    gains = [(one, edit - response) for one, (response, edit) in zip(fixed, scores, strict=True)]
    gains = [(one, gain) for one, gain in gains if gain == gain]  # NaN: no reward
    if not gains:
        return None
    aspects = Counter(one.aspect for one, _ in gains).most_common()
    by_aspect = {name: _share([item for item in gains if item[0].aspect == name]) for name, _ in aspects}
    worst, lost = min(gains, key=lambda item: item[1])
    example = (worst.clause, worst.response, worst.edit) if lost < 0 else None
    return FollowThrough(_share(gains), by_aspect, faults, example)


def _share(gains: Sequence[tuple[Fixed, float]]) -> Estimate:
    return metrics.share(metrics.correctness([gain for _, gain in gains]), [one.prompt_id for one, _ in gains])


def _complaints(critiques: Iterable[str]) -> Iterable[tuple[str, Reading]]:
    for text in critiques:
        for clause, readings in read_critique(text):
            yield from ((clause, reading) for reading in readings if not reading.is_merit)


def _fixed(reading: Reading, prompt: Prompt, response: str) -> str | None:
    """The response with the fault fixed, by the first measure that an edit moves as wanted."""
    asked = prompt[-1].content if prompt else ""
    for criterion in as_criteria(reading):
        found = edited([criterion], asked, response, "", only_better=True) if response.strip() else {}
        if found:
            return next(iter(found.values()))
    return None
