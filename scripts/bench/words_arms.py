"""The arms of words.py: which criteria are fitted to the comparisons of a draw, and with which prior."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rrm_lm.evaluation.preferences.criteria import PRIOR_STD
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.finding import find_criteria
from rrm_lm.feedback.criteria.records import Criterion
from rrm_lm.feedback.records import Comparison
from rrm_lm.simulated import note_words

DETECTORS_ALONE = [Criterion(f"has more {name}", f"detector_{name}", name, weight=0.0) for name in DETECTORS]


@dataclass(frozen=True)
class Draw:
    """What one draw gives to the arms."""

    pairs: list[Comparison]
    longer: list[Comparison]  # `pairs` and as many more as take a person the time that the critiques took
    theirs: list[Comparison]  # `pairs` with another person's critiques; empty without another person
    default: Mapping[str, float]  # weights of the detectors on other sets
    seed: int
    person: str  # whose templates the critiques follow; "" for real people and for data/assistant


def named(pairs: Sequence[Comparison]) -> list[Criterion]:
    """What critiques name, without the questions to a model."""
    return [one for one in find_criteria(pairs).criteria if not one.question]


def with_all(criteria: list[Criterion]) -> list[Criterion]:
    """The criteria, and every detector that they do not use, with a prior mean of 0."""
    used = {one.measure for one in criteria if one.target is None}
    return criteria + [one for one in DETECTORS_ALONE if one.measure not in used]


def shuffled(draw: Draw) -> list[Comparison]:
    """The comparisons with critiques of other responses of the draw."""
    texts = [critiques for one in draw.pairs for critiques in (one.chosen_critiques, one.rejected_critiques)]
    random.Random(draw.seed).shuffle(texts)
    return with_critiques(draw.pairs, iter(texts))


def with_critiques(pairs: Sequence[Comparison], texts: object) -> list[Comparison]:
    """The comparisons with other critiques: an iterator with those of each chosen and rejected response in turn."""
    following = iter(texts)  # type: ignore[call-overload]
    return [replace(one, chosen_critiques=next(following), rejected_critiques=next(following)) for one in pairs]


# What a simulated person's phrases say, in clauses that the reader reads without fault: by part, then fault and merit.
_ANSWERS = ("It does not answer the question.", "It answers the question.")
_OPENING = ('No need for "Sure!" at the start.', "It starts with the answer.")
TICKED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "plain": {
        "answer": _ANSWERS,
        "length": ("It should have at most two sentences.", "I like that it has two sentences at most."),
        "opening": _OPENING,
        "form": ("I do not need a list.", "No list, that is good."),
        "close": ("I miss a friendly close.", "I like the kind word at the end."),
    },
    "thorough": {
        "answer": _ANSWERS,
        "length": ("It should have three to five sentences.", "I like that it has three to five sentences."),
        "opening": _OPENING,
        "form": ("It should have a list.", "I like the list."),
        "close": ("The friendly close is not needed.", "No small talk at the end, good."),
        "source": ("It does not quote the text.", "It quotes the text, good."),
    },
}


def _patterns(person: str) -> list[tuple[re.Pattern[str], str]]:
    """For each phrase of a simulated person, the clause that says the same."""
    phrases = [(note_words._WRONG + note_words._MISSING, "answer", 0), (note_words._RIGHT, "answer", 1)]
    phrases += [(texts, part, 0) for part, texts in note_words.FAULTS[person].items()]
    phrases += [(texts, part, 1) for part, texts in note_words.PRAISE[person].items()]
    return [
        (re.compile(re.sub(r"\\\{\w+\\\}", ".+?", re.escape(text)), re.IGNORECASE), TICKED[person][part][merit])
        for texts, part, merit in phrases
        for text in texts
    ]


def ticked(draw: Draw) -> list[Comparison]:
    """The comparisons with the aspects that their critiques name, as if ticked on a form."""
    patterns = _patterns(draw.person)
    texts = [critiques for one in draw.pairs for critiques in (one.chosen_critiques, one.rejected_critiques)]
    return with_critiques(
        draw.pairs,
        [tuple(clause for text in some for pattern, clause in patterns if pattern.search(text)) for some in texts],
    )


def by_default(draw: Draw) -> list[Criterion]:
    return [replace(one, weight=draw.default.get(one.measure, 0.0)) for one in DETECTORS_ALONE]


ARMS: Mapping[str, Callable[[Draw], list[Criterion]]] = {
    "no_words": lambda draw: DETECTORS_ALONE,
    "words": lambda draw: with_all(named(draw.pairs)),
    "words_only": lambda draw: named(draw.pairs),
    "default": by_default,
    "other_person": lambda draw: with_all(named(draw.theirs)),
    "shuffled": lambda draw: with_all(named(shuffled(draw))),
    "flat": lambda draw: with_all([replace(one, weight=PRIOR_STD) for one in named(draw.pairs)]),
    "checkboxes": lambda draw: with_all(named(ticked(draw))),
    "equal_time": lambda draw: DETECTORS_ALONE,  # fitted to `longer`
}


def arms_of(draw: Draw) -> list[str]:
    """The arms that a draw can have."""
    left_out = {name for name, there in (("other_person", draw.theirs), ("checkboxes", draw.person)) if not there}
    return [name for name in ARMS if name not in left_out]
