"""How far people agree: Krippendorff's alpha of all, Cohen's kappa of two, and each person against the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any


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
    the share of equal values over all (thing, other person), with `low` and `high` of its 95% Wilson interval, so that
    one careless person stands out.
    """
    from scipy.stats import binomtest

    people = sorted({person for given in verdicts.values() for person in given})
    both = {
        (a, b): [(given[a], given[b]) for given in verdicts.values() if a in given and b in given]
        for a, b in combinations(people, 2)
    }
    with_others = {}
    for person in people:
        equal = [a == b for pair, values in both.items() if person in pair for a, b in values]
        if equal:
            share = binomtest(sum(equal), len(equal)).proportion_ci(method="wilson")
            with_others[person] = {
                "n": len(equal),
                "value": sum(equal) / len(equal),
                "low": share.low,
                "high": share.high,
            }
    return {
        "alpha": alpha([list(given.values()) for given in verdicts.values()]),
        "n": sum(len(given) > 1 for given in verdicts.values()),
        "pairs": [{"people": pair, "n": len(both[pair]), "kappa": kappa(both[pair])} for pair in both if both[pair]],
        "people": with_others,
    }
