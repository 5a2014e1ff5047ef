"""Results of an evaluation on preferences: comparisons with their rewards, and measures.

This module uses no model: `scoring.py` makes the scored comparisons, and `outputs.py` and the reports show the results.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations

import numpy as np

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences import benchmarks
from rrm_lm.evaluation.preferences.benchmarks import BestOfItem, StyleMatrix, TieItem
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.evaluation.statistics.metrics import Calibration, Estimate, LengthCorrelation
from rrm_lm.feedback.records import Comparison, Prompt

BEST_OF = 4  # responses of a best-of-n item, as in RewardBench 2
_TIES_GROUP = re.compile(r"(ref|tied)\W*(\d+)$")  # RewardBench 2 names its Ties items "ref:7" and "tied:7"


@dataclass(frozen=True, slots=True)
class ScoredComparison:
    """A comparison with the rewards of its two responses."""

    index: int  # its index in the set, from 0
    comparison: Comparison
    reward_chosen: float
    reward_rejected: float
    # Why it could not be scored; "" if it was scored. The rewards are finite if it was scored, else NaN.
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
    """All measures of a group of scored comparisons. Shares are in [0, 1]. See `evaluation/statistics/metrics.py`."""

    ties: int
    accuracy: Estimate  # share of comparisons in which the model agrees with the overseer; ties count half
    longer_accuracy: Estimate  # the accuracy of always picking the response with more characters
    # minus_longer, minus_shorter: accuracy of the model minus that of always picking the longer or the shorter
    # response, paired
    minus_longer: Estimate
    minus_shorter: Estimate
    calibration: Calibration
    brier: Estimate
    length: LengthCorrelation
    sections: Mapping[str, Estimate]  # RewardBench's section scores, if the subsets are RewardBench's
    best_of_four: Estimate | None  # best-of-four accuracy (chance is 1/4), if there are items with four responses
    ties_subset: Estimate | None  # RewardBench 2's score of its Ties subset, if present
    styles: StyleMatrix | None  # RM-Bench's accuracy by style, if the comparisons have styles

    @property
    def length_rule(self) -> tuple[str, float, Estimate]:
        """The better of the two length rules: its name, its accuracy, and the model's lead over it."""
        if self.longer_accuracy.value >= 0.5:
            return "longer", self.longer_accuracy.value, self.minus_longer
        return "shorter", 1 - self.longer_accuracy.value, self.minus_shorter

    def to_dict(self) -> dict[str, object]:
        """The entries of results.json: point values under plain names, intervals under `intervals`."""
        found = asdict(self)
        return {
            "accuracy": found["accuracy"],
            "ties": self.ties,
            "ece": self.calibration.ece,
            "ece_by_chance": self.calibration.by_chance,
            "accuracy_minus_confidence": found["calibration"]["modesty"],
            "brier": self.brier.value,
            "longer_accuracy": self.longer_accuracy.value,
            "accuracy_minus_longer": found["minus_longer"],
            "accuracy_minus_shorter": found["minus_shorter"],
            "intervals": {"brier": found["brier"], "longer_accuracy": found["longer_accuracy"]},
            "reward_length_correlation": found["length"],
            "reliability": [row.to_dict() for row in self.calibration.bins],
            "sections": found["sections"] or None,
            "best_of_four": found["best_of_four"],
            "ties_subset": found["ties_subset"],
            "styles": found["styles"],
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of comparisons given, scored and not scored by reason, and the measures (None if nothing was scored)."""

    n_given: int
    n_scored: int
    n_prompts: int
    not_scored: Mapping[str, int]
    measures: Measures | None

    def to_dict(self) -> dict[str, object]:
        measures = {"accuracy": None} if self.measures is None else self.measures.to_dict()
        counts = ("n_given", "n_scored", "n_prompts", "not_scored")
        return {"accuracy": measures.pop("accuracy"), **{name: getattr(self, name) for name in counts}, **measures}


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's accuracy, and the accuracy of the model minus it on the same comparisons."""

    accuracy: Estimate
    lead: Estimate
    fitted: str = ""  # how it was fitted; "" for a rule without parameters

    def to_dict(self) -> dict[str, object]:
        return {"accuracy": asdict(self.accuracy), "model_minus": asdict(self.lead), "fitted": self.fitted}


@dataclass(frozen=True, slots=True)
class SetResult:
    """The evaluation of one set: overall, by source and by subset, and every comparison."""

    name: str
    overall: Summary
    by_source: Mapping[str, Summary]
    by_subset: Mapping[str, Summary]
    examples: tuple[ScoredComparison, ...]
    # by name, if requested (see `baselines.py`)
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    # by the part of a gold reward that decides a comparison, if one was given
    by_part: Mapping[str, Summary] = field(default_factory=dict)

    @property
    def measures(self) -> Measures:
        """The overall measures, which always exist: `summarise_set` rejects a set without scores."""
        assert self.overall.measures is not None
        return self.overall.measures

    @property
    def scored(self) -> list[ScoredComparison]:
        return [one for one in self.examples if not one.reason]

    def to_dict(self) -> dict[str, object]:
        return {
            **self.overall.to_dict(),
            "by_source": {name: summary.to_dict() for name, summary in self.by_source.items()},
            "by_subset": {name: summary.to_dict() for name, summary in self.by_subset.items()},
            **({"by_part": {name: one.to_dict() for name, one in self.by_part.items()}} if self.by_part else {}),
            **({"baselines": {name: one.to_dict() for name, one in self.baselines.items()}} if self.baselines else {}),
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of one model on one or more sets; `details` are settings and versions for results.json."""

    model: str
    sets: tuple[SetResult, ...]
    details: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return {"model": self.model, **self.details, "sets": {result.name: result.to_dict() for result in self.sets}}


def summarise_set(
    name: str, examples: Sequence[ScoredComparison], dropped: Mapping[str, int] | None = None
) -> SetResult:
    """Compute all measures of a set. `examples` are all of its comparisons, scored or not. `dropped` are rows that the
    reader dropped, by reason; they count as given and not scored. Raises DataError, with the reasons, if no comparison
    has a reward.
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
    several = len({one.comparison.source for one in examples}) > 1

    def subset(one: ScoredComparison) -> str:
        source = f"{one.comparison.source}/" if several and one.comparison.source else ""
        return source + one.comparison.subset if one.comparison.subset else ""

    by_source = grouped(examples, lambda one: one.comparison.source or name)
    return SetResult(name, overall, by_source, grouped(examples, subset), tuple(examples))


def grouped(examples: Sequence[ScoredComparison], key: Callable[[ScoredComparison], str]) -> dict[str, Summary]:
    """A summary of each group, by name; comparisons without a group are ignored."""
    groups: dict[str, list[ScoredComparison]] = {}
    for one in examples:
        groups.setdefault(key(one), []).append(one)
    return {name: summarise(groups[name]) for name in sorted(groups) if name}


def _reasons(counts: Mapping[str, int]) -> str:
    return " (" + "; ".join(f"{reason}: {count}" for reason, count in counts.items()) + ")" if counts else ""


def summarise(examples: Sequence[ScoredComparison], dropped: Mapping[str, int] | None = None) -> Summary:
    """Count and measure comparisons; see `summarise_set`."""
    scored = [one for one in examples if not one.reason]
    reasons = Counter(dropped or {})
    reasons.update(one.reason for one in examples if one.reason)
    return Summary(
        n_given=len(examples) + sum((dropped or {}).values()),
        n_scored=len(scored),
        n_prompts=len({one.comparison.prompt_id for one in scored}),
        not_scored=dict(sorted(reasons.items())),
        measures=measure(scored) if scored else None,
    )


def measure(scored: Sequence[ScoredComparison]) -> Measures:
    """Every measure of at least one scored comparison."""
    comparisons = [one.comparison for one in scored]
    prompts = [c.prompt_id for c in comparisons]
    margins = np.array([one.margin for one in scored])
    right = metrics.correctness(margins)
    longer = metrics.correctness([len(c.chosen) - len(c.rejected) for c in comparisons])
    responses = distinct_responses(scored)
    choices = best_of_choices(scored)
    styled = [one for one in scored if one.comparison.styles is not None]
    return Measures(
        ties=int(np.count_nonzero(margins == 0)),
        accuracy=metrics.share(right, prompts),
        longer_accuracy=metrics.share(longer, prompts),
        minus_longer=metrics.paired_difference(right, longer, prompts),
        minus_shorter=metrics.paired_difference(right, 1 - longer, prompts),
        calibration=metrics.calibration(margins, prompts),
        brier=metrics.brier(margins, prompts),
        length=metrics.length_correlation(
            [one.reward for one in responses],
            [len(one.text) for one in responses],
            [one.prompt for one in responses],
            [one.comparison.prompt_id for one in responses],
        ),
        sections=benchmarks.section_scores(right, [c.subset for c in comparisons], prompts),
        best_of_four=benchmarks.best_of_n(choices) if choices else None,
        ties_subset=benchmarks.ties_score(tie_items(scored)),
        styles=benchmarks.style_matrix(
            [one.margin for one in styled],
            [one.comparison.styles or (0, 0) for one in styled],
            [one.comparison.prompt_id for one in styled],
            [one.comparison.subset for one in styled],
        )
        if styled
        else None,
    )


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with its reward, the index of its exact prompt, and a comparison that contains it."""

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


# ---- models compared with each other ----


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
    """Every pair of models, by name, on each set. Raises DataError if two results are not of the same comparisons, or
    both models scored none of them.
    """
    found = []
    for (first, one), (second, other) in combinations(evaluations.items(), 2):
        for mine, theirs in zip(one.sets, other.sets, strict=True):
            right = _right(mine, theirs)
            difference = metrics.paired_difference(*right)
            found.append(ModelDifference(mine.name, first, second, difference, metrics.needed(*right)))
    return found


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


# ---- items of benchmarks, put back together from their comparisons ----


def _groups(scored: Sequence[ScoredComparison]) -> list[list[ScoredComparison]]:
    groups: dict[tuple[str, str, str, str], list[ScoredComparison]] = {}
    for one in scored:
        c = one.comparison
        if c.group:
            groups.setdefault((c.origin.file, c.source, c.subset, c.group), []).append(one)
    return list(groups.values())


def best_of_choices(scored: Sequence[ScoredComparison]) -> list[BestOfItem]:
    """The items with one chosen and three rejected responses, all scored; see `benchmarks.best_of_n`."""
    choices = []
    for group in _groups(scored):
        first = group[0]
        several_chosen = any(one.comparison.chosen != first.comparison.chosen for one in group)
        if several_chosen or ties_name(first) or first.comparison.styles is not None:
            continue
        others = {one.comparison.rejected: one.reward_rejected for one in group}
        if len(others) == BEST_OF - 1:
            about = first.comparison
            choices.append(BestOfItem(first.reward_chosen, tuple(others.values()), about.prompt_id, about.subset))
    return choices


def ties_name(one: ScoredComparison) -> re.Match[str] | None:
    """The kind and the number of the item of RewardBench 2's Ties subset that a comparison is of; None for others."""
    return _TIES_GROUP.search(one.comparison.group) if one.comparison.subset.lower() == "ties" else None


def tie_items(scored: Sequence[ScoredComparison]) -> list[TieItem]:
    """The items of RewardBench 2's Ties subset."""
    items = []
    for group in _groups(scored):
        if (name := ties_name(group[0])) is None:
            continue
        right = {one.comparison.chosen: one.reward_chosen for one in group}
        wrong = {one.comparison.rejected: one.reward_rejected for one in group}
        items.append(TieItem(int(name[2]), name[1] == "tied", tuple(right.values()), tuple(wrong.values())))
    return items
