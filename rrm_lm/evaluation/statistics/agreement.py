"""How far people agree: Krippendorff's alpha of all, Cohen's kappa of two, and each person against the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.statistics.metrics import share

_SURE = 0.98  # no person is taken to be right more often: few answers prove no more
_ROUNDS = 50  # of expectation-maximization


def alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values (2011, "Computing Krippendorff's alpha-reliability", section D).

    `units`: the values that people gave to each thing; things with one value do not count. 1 is full agreement, 0 that
    of chance. None if nothing was judged twice, or if all values are equal.
    """
    judged = [Counter(values) for values in units if len(values) > 1]
    values = sum(judged, Counter())
    n = values.total()
    expected = n * n - sum(count * count for count in values.values())
    if not expected:
        return None
    differing = ((u.total() ** 2 - sum(c * c for c in u.values())) / (u.total() - 1) for u in judged)
    return 1 - (n - 1) * sum(differing) / expected


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa (1960) of two people's values of the same things; None if chance alone makes them equal."""
    n = len(pairs)
    first, second = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    chance = sum(first[value] * second[value] for value in first) / n**2 if n else 1
    return None if chance == 1 else (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


def agreement(verdicts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Agreement on things by name, each with the value that each person gave it.

    Returns `alpha` with the number `n` of things judged twice; `pairs` of people with `kappa`; and for each of `people`
    the share of equal values over all (thing, other person), with `low` and `high` of its 95% interval clustered by
    thing, so that one careless person stands out.
    """
    people = sorted({person for given in verdicts.values() for person in given})
    both = {
        (a, b): [(given[a], given[b]) for given in verdicts.values() if a in given and b in given]
        for a, b in combinations(people, 2)
    }
    with_others = {}
    for person in people:
        equal = [
            (value == given[person], thing)
            for thing, given in verdicts.items()
            for other, value in given.items()
            if person in given and other != person
        ]
        if equal:
            found = share([same for same, _ in equal], [thing for _, thing in equal])
            with_others[person] = {"n": len(equal), "value": found.value, "low": found.low, "high": found.high}
    return {
        "alpha": alpha([list(given.values()) for given in verdicts.values()]),
        "n": sum(len(given) > 1 for given in verdicts.values()),
        "pairs": [{"people": pair, "n": len(both[pair]), "kappa": kappa(both[pair])} for pair in both if both[pair]],
        "people": with_others,
    }


def reliabilities(verdicts: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """How often each person is right, 0.5 to `_SURE`, by the one-coin model of Dawid and Skene (1979), with
    expectation-maximization: a person is right with a probability of their own, and else says any other value.

    `verdicts` are things by name, each with the value that each person gave it. Only things that several people judged
    say who is right. Who judged none of them gets the median of the others. Raises ConfigError if nothing was judged
    twice.
    """
    shared = [given for given in verdicts.values() if len(given) > 1]
    if not shared:
        what = "Nobody answered about what somebody else answered about, so nothing shows who is reliable"
        raise ConfigError(what, where="reliability", remedy="ask with --overlap 2")
    values = sorted({value for given in shared for value in given.values()})
    found = {person: 0.8 for given in shared for person in given}
    for _ in range(_ROUNDS):
        shares: dict[str, list[float]] = {person: [] for person in found}
        for given in shared:
            likely = {
                true: math.prod(
                    found[who] if value == true else (1 - found[who]) / max(len(values) - 1, 1)
                    for who, value in given.items()
                )
                for true in values
            }
            for who, value in given.items():
                shares[who].append(likely[value] / sum(likely.values()))
        found = {who: min(max(sum(some) / len(some), 0.5), _SURE) for who, some in shares.items()}
    middle = sorted(found.values())[len(found) // 2]
    return {person: found.get(person, middle) for given in verdicts.values() for person in given}


def log_odds(reliability: float) -> float:
    """The strength in nats of an answer that is right with this probability."""
    return math.log(reliability / (1 - reliability))
