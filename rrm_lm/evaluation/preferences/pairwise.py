"""Compare reward models with each other on the same comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.results import Evaluation, SetResult
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.evaluation.statistics.metrics import Estimate


@dataclass(frozen=True, slots=True)
class ModelDifference:
    """Two models on one set."""

    # set, first, second: the names of the set and of the models
    set: str
    first: str
    second: str
    difference: Estimate  # accuracy of the first model minus the second's; paired, clustered by prompt
    pairs_for_one_point: int | None  # how many comparisons would show a difference of one point; see `metrics.needed`


def compare_all(evaluations: Mapping[str, Evaluation]) -> list[ModelDifference]:
    """Every pair of models, by name, on each set. Raises as `compare_models`."""
    return [
        ModelDifference(mine.name, first, second, compare_models(mine, theirs), metrics.needed(*_right(mine, theirs)))
        for (first, one), (second, other) in combinations(evaluations.items(), 2)
        for mine, theirs in zip(one.sets, other.sets, strict=True)
    ]


def compare_models(first: SetResult, second: SetResult) -> Estimate:
    """Accuracy of the first model minus the second's on comparisons that both scored; paired, clustered by prompt.
    Raises DataError if the two results are not of the same comparisons, or both scored none of them.
    """
    return metrics.paired_difference(*_right(first, second))


def _right(first: SetResult, second: SetResult) -> tuple[list[float], list[float], list[str]]:
    """Whether each model is right on each comparison that both scored, and its prompt."""
    both = [(a, b) for a, b in zip(first.examples, second.examples, strict=False) if not (a.reason or b.reason)]
    if [one.comparison for one in first.examples] != [one.comparison for one in second.examples] or not both:
        raise DataError(
            "the two models were not evaluated on the same comparisons",
            where=f"{first.name} and {second.name}",
            expected="the same comparisons in the same order, some of which both models scored",
            remedy="evaluate both models on one set",
        )
    return [a.correct for a, _ in both], [b.correct for _, b in both], [a.comparison.prompt_id for a, _ in both]
