"""What an evaluation on preferences found: examples with their rewards, and the measures taken from them.

Nothing here touches a model. `preferences.py` makes the examples; `outputs.py`, `model_card.py` and `report.py` show
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences import benchmarks
from rrm_lm.evaluation.preferences.benchmarks import BestOfItem, StyleMatrix, TieItem
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.evaluation.statistics.metrics import Calibration, Estimate, LengthCorrelation
from rrm_lm.feedback.records import Comparison, Prompt

BEST_OF = 4  # candidates of a best-of-n item: RewardBench 2's number
_TIES_GROUP = re.compile(r"(ref|tied)\W*(\d+)$")  # RewardBench 2 names its Ties items "ref:7" and "tied:7"


@dataclass(frozen=True, slots=True)
class ScoredComparison:
    """One comparison with the rewards of its two responses, or the reason why it has none.

    Attributes:
        index: Its place among the set's comparisons, from 0.
        reason: Why it could not be scored; "" if it was. Rewards are finite then, and NaN otherwise.
    """

    index: int
    comparison: Comparison
    reward_chosen: float
    reward_rejected: float
    reason: str = ""

    @property
    def margin(self) -> float:
        """reward(chosen) - reward(rejected): positive if the model agrees with the overseer."""
        return self.reward_chosen - self.reward_rejected

    @property
    def correct(self) -> float:
        """1 right, 1/2 tied, 0 wrong."""
        return float(metrics.correctness([self.margin])[0])

    @property
    def probability(self) -> float:
        """The model's P(chosen is preferred), the sigmoid of the margin."""
        return float(metrics.preference_probability([self.margin])[0])


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything measured on a group of scored examples. Shares are in [0, 1]; see the docstrings in `metrics.py`.

    Attributes:
        accuracy: Share of comparisons that the model decides as the overseer did, ties counted half.
        longer_accuracy: The same for always picking the response with more characters.
        minus_longer, minus_shorter: Accuracy of the model minus that of always picking the longer or the shorter
            response, paired.
        sections: RewardBench's section scores, if these are RewardBench's subsets.
        best_of_four: Best-of-four accuracy (chance is 1/4), if there are items with four responses.
        ties_subset: RewardBench 2's score of its Ties subset, if it is there.
        styles: RM-Bench's accuracy by style, if the comparisons have styles.
    """

    ties: int
    accuracy: Estimate
    longer_accuracy: Estimate
    minus_longer: Estimate
    minus_shorter: Estimate
    calibration: Calibration
    brier: Estimate
    length: LengthCorrelation
    sections: Mapping[str, Estimate]
    best_of_four: Estimate | None
    ties_subset: Estimate | None
    styles: StyleMatrix | None

    @property
    def length_rule(self) -> tuple[str, float, Estimate]:
        """The harder of the two length rules to beat: its name, its accuracy, and the model's lead over it."""
        if self.longer_accuracy.value >= 0.5:
            return "longer", self.longer_accuracy.value, self.minus_longer
        return "shorter", 1 - self.longer_accuracy.value, self.minus_shorter

    def to_dict(self) -> dict[str, object]:
        """As in results.json: point values under their plain names, their intervals under `intervals`."""
        return {
            "accuracy": self.accuracy.to_dict(),
            "ties": self.ties,
            "ece": self.calibration.ece,
            "ece_by_chance": self.calibration.by_chance,
            "accuracy_minus_confidence": self.calibration.modesty.to_dict(),
            "brier": self.brier.value,
            "longer_accuracy": self.longer_accuracy.value,
            "accuracy_minus_longer": self.minus_longer.to_dict(),
            "accuracy_minus_shorter": self.minus_shorter.to_dict(),
            "intervals": {"brier": self.brier.to_dict(), "longer_accuracy": self.longer_accuracy.to_dict()},
            "reward_length_correlation": self.length.to_dict(),
            "reliability": [row.to_dict() for row in self.calibration.bins],
            "sections": {name: value.to_dict() for name, value in self.sections.items()} or None,
            "best_of_four": _or_none(self.best_of_four),
            "ties_subset": _or_none(self.ties_subset),
            "styles": None if self.styles is None else self.styles.to_dict(),
        }


def _or_none(value: Estimate | None) -> dict[str, float | int] | None:
    return None if value is None else value.to_dict()


@dataclass(frozen=True, slots=True)
class Summary:
    """How many comparisons were given and scored, why not the rest, and the measures (None if nothing was scored)."""

    n_given: int
    n_scored: int
    n_prompts: int
    not_scored: Mapping[str, int]
    measures: Measures | None

    def to_dict(self) -> dict[str, object]:
        counts = {
            "n_given": self.n_given,
            "n_scored": self.n_scored,
            "n_prompts": self.n_prompts,
            "not_scored": dict(self.not_scored),
        }
        if self.measures is None:
            return {"accuracy": None, **counts}
        measures = self.measures.to_dict()
        return {"accuracy": measures.pop("accuracy"), **counts, **measures}


@dataclass(frozen=True, slots=True)
class SetResult:
    """The evaluation of one set: overall, by source and by subset, and every example."""

    name: str
    overall: Summary
    by_source: Mapping[str, Summary]
    by_subset: Mapping[str, Summary]
    examples: tuple[ScoredComparison, ...]

    @property
    def measures(self) -> Measures:
        """The overall measures, which a set always has: one with nothing scored is refused when it is made."""
        assert self.overall.measures is not None
        return self.overall.measures

    @property
    def scored(self) -> list[ScoredComparison]:
        return [example for example in self.examples if not example.reason]

    def to_dict(self) -> dict[str, object]:
        return {
            **self.overall.to_dict(),
            "by_source": {name: summary.to_dict() for name, summary in self.by_source.items()},
            "by_subset": {name: summary.to_dict() for name, summary in self.by_subset.items()},
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model scored on one or more sets. `details` is whatever else belongs beside the numbers (settings,
    versions)."""

    model: str
    sets: tuple[SetResult, ...]
    details: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return {"model": self.model, **self.details, "sets": {result.name: result.to_dict() for result in self.sets}}


def summarise_set(
    name: str, examples: Sequence[ScoredComparison], dropped: Mapping[str, int] | None = None
) -> SetResult:
    """Take all measures of a set.

    Args:
        name: The set's name.
        examples: All of its comparisons, scored or not.
        dropped: Rows that never became a comparison, by reason (the reader's count): they are part of what was given.

    Raises:
        DataError: if no example has a reward, with the reasons.
    """
    if not examples:
        raise DataError(
            "the set has no comparisons to evaluate on" + _reasons(dropped or {}),
            where=name,
            expected="at least one prompt with a chosen and a rejected response",
            remedy="check the file and, for columns with other names, map them with --columns",
        )
    overall = summarise(examples, dropped)
    if overall.measures is None:
        raise DataError(
            f"none of the {overall.n_given} comparisons could be scored" + _reasons(overall.not_scored),
            where=name,
            expected="a finite reward for both responses of at least one comparison",
            remedy="check the model: a reward that is not a number usually means an overflow or broken weights",
        )
    several = len({example.comparison.source for example in examples}) > 1

    def subset(example: ScoredComparison) -> str:
        comparison = example.comparison
        source = f"{comparison.source}/" if several and comparison.source else ""
        return source + comparison.subset if comparison.subset else ""

    return SetResult(
        name,
        overall,
        _by(examples, lambda example: example.comparison.source or name),
        _by([example for example in examples if subset(example)], subset),
        tuple(examples),
    )


def _by(examples: Sequence[ScoredComparison], key: Callable[[ScoredComparison], str]) -> dict[str, Summary]:
    groups: dict[str, list[ScoredComparison]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return {name: summarise(groups[name]) for name in sorted(groups)}


def _reasons(counts: Mapping[str, int]) -> str:
    return " (" + "; ".join(f"{reason}: {count}" for reason, count in counts.items()) + ")" if counts else ""


def summarise(examples: Sequence[ScoredComparison], dropped: Mapping[str, int] | None = None) -> Summary:
    """Count and measure some examples; see `summarise_set`."""
    scored = [example for example in examples if not example.reason]
    reasons = Counter(dropped or {})
    reasons.update(example.reason for example in examples if example.reason)
    return Summary(
        n_given=len(examples) + sum((dropped or {}).values()),
        n_scored=len(scored),
        n_prompts=len({example.comparison.prompt_id for example in scored}),
        not_scored=dict(sorted(reasons.items())),
        measures=measure(scored) if scored else None,
    )


def measure(scored: Sequence[ScoredComparison]) -> Measures:
    """Every measure of at least one scored example."""
    margins = np.array([example.margin for example in scored])
    prompts = [example.comparison.prompt_id for example in scored]
    longer_by = [len(example.comparison.chosen) - len(example.comparison.rejected) for example in scored]
    right, longer = metrics.correctness(margins), metrics.correctness(longer_by)
    subsets = [example.comparison.subset for example in scored]
    styled = [example for example in scored if example.comparison.styles is not None]
    items = tie_items(scored)
    choices = best_of_choices(scored)
    return Measures(
        ties=int(np.count_nonzero(margins == 0)),
        accuracy=metrics.share(right, prompts),
        longer_accuracy=metrics.share(longer, prompts),
        minus_longer=metrics.paired_difference(right, longer, prompts),
        minus_shorter=metrics.paired_difference(right, 1 - longer, prompts),
        calibration=metrics.calibration(margins, prompts),
        brier=metrics.brier(margins, prompts),
        length=_length(scored),
        sections=benchmarks.section_scores(right, subsets, prompts),
        best_of_four=benchmarks.best_of_n(choices) if choices else None,
        ties_subset=benchmarks.ties_score(items),
        styles=_styles(styled) if styled else None,
    )


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with its reward; `prompt` numbers the exact prompts, `comparison` is one that it is in."""

    prompt: int
    comparison: Comparison
    text: str
    reward: float


def distinct_responses(scored: Sequence[ScoredComparison]) -> list[ScoredResponse]:
    """Each response to each prompt once."""
    seen: dict[tuple[int, str], ScoredResponse] = {}
    numbers: dict[Prompt, int] = {}
    for one in scored:
        comparison = one.comparison
        number = numbers.setdefault(comparison.prompt, len(numbers))
        for text, reward in ((comparison.chosen, one.reward_chosen), (comparison.rejected, one.reward_rejected)):
            seen.setdefault((number, text), ScoredResponse(number, comparison, text, reward))
    return list(seen.values())


def _length(scored: Sequence[ScoredComparison]) -> LengthCorrelation:
    responses = distinct_responses(scored)
    return metrics.length_correlation(
        [one.reward for one in responses],
        [len(one.text) for one in responses],
        [one.prompt for one in responses],
        [one.comparison.prompt_id for one in responses],
    )


def _styles(styled: Sequence[ScoredComparison]) -> StyleMatrix:
    return benchmarks.style_matrix(
        [example.margin for example in styled],
        [example.comparison.styles or (0, 0) for example in styled],
        [example.comparison.prompt_id for example in styled],
    )


def _groups(scored: Sequence[ScoredComparison]) -> list[list[ScoredComparison]]:
    groups: dict[tuple[str, str, str, str], list[ScoredComparison]] = {}
    for example in scored:
        c = example.comparison
        if c.group:
            groups.setdefault((c.origin.file, c.source, c.subset, c.group), []).append(example)
    return list(groups.values())


def best_of_choices(scored: Sequence[ScoredComparison]) -> list[BestOfItem]:
    """The items with one chosen and three rejected responses, all scored; see `benchmarks.best_of_n`."""
    choices = []
    for group in _groups(scored):
        first = group[0]
        if is_ties(first) or first.comparison.styles is not None:
            continue
        if {example.comparison.chosen for example in group} != {first.comparison.chosen}:
            continue
        others = {example.comparison.rejected: example.reward_rejected for example in group}
        if len(others) == BEST_OF - 1:
            choices.append(BestOfItem(first.reward_chosen, tuple(others.values()), first.comparison.prompt_id))
    return choices


def is_ties(example: ScoredComparison) -> bool:
    """Whether a comparison is of RewardBench 2's Ties subset."""
    comparison = example.comparison
    return comparison.subset.lower() == "ties" and _TIES_GROUP.search(comparison.group) is not None


def tie_items(scored: Sequence[ScoredComparison]) -> list[TieItem]:
    """The items of RewardBench 2's Ties subset, put back together from their comparisons."""
    items = []
    for group in _groups(scored):
        name = _TIES_GROUP.search(group[0].comparison.group)
        if name is None or not is_ties(group[0]):
            continue
        right = {example.comparison.chosen: example.reward_chosen for example in group}
        wrong = {example.comparison.rejected: example.reward_rejected for example in group}
        items.append(TieItem(int(name[2]), name[1] == "tied", tuple(right.values()), tuple(wrong.values())))
    return items


def compare_models(first: SetResult, second: SetResult) -> Estimate:
    """Accuracy of the first model minus the second's on the examples that both scored, paired, clustered by prompt.

    Raises:
        DataError: if the two results are not of the same comparisons.
    """
    if [e.comparison for e in first.examples] != [e.comparison for e in second.examples]:
        raise DataError(
            "the two models were not evaluated on the same comparisons",
            where=f"{first.name} and {second.name}",
            expected="the same comparisons in the same order",
            remedy="evaluate both models on one set",
        )
    both = [(a, b) for a, b in zip(first.examples, second.examples, strict=True) if not (a.reason or b.reason)]
    return metrics.paired_difference(
        [a.correct for a, _ in both], [b.correct for _, b in both], [a.comparison.prompt_id for a, _ in both]
    )
