"""Results of a comparison of policies: samples, measures and verdicts of judges.

`comparison.py` computes the measures, and the reports show them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from rrm_lm.evaluation.policies.best_of_n import BestOfNCurve
from rrm_lm.evaluation.statistics.metrics import Estimate, verdict
from rrm_lm.feedback.records import Prompt

GOLD = "gold"  # the measure of a programmatic gold reward
PART = f"{GOLD}: "  # prefix of the measures for its parts


@dataclass(frozen=True, slots=True)
class Sample:
    """One response that a policy wrote."""

    response: str
    tokens: int  # number of generated tokens, including the end-of-turn token
    finished: bool  # whether it ended with an end token, not at the length limit
    # by measure (`GOLD`, its parts, names of reward models); NaN or missing if unknown
    rewards: Mapping[str, float] = field(default_factory=dict)
    # log p(response) under the policy minus that under the reference, in nats; its mean over the policy's own samples
    # is the KL divergence. None if unknown.
    log_ratio: float | None = None

    def reward(self, measure: str) -> float:
        """Its reward by one measure; NaN if unknown."""
        return float(self.rewards.get(measure, math.nan))


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """For each prompt, one or more samples of one policy, and possibly its answer at temperature 0.

    A trivial policy is not a model. It shows how a measure rates answers that cannot be good.
    """

    name: str
    samples: tuple[tuple[Sample, ...], ...]
    trivial: bool = False
    greedy: tuple[Sample, ...] = ()  # by prompt; empty if unknown

    @property
    def count(self) -> int:
        return sum(map(len, self.samples))


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """A judge's verdicts on a response of the policy and one of the reference, shown in both orders."""

    prompt: int  # index of the prompt, from 0
    # shown_first, shown_second: the judge's probability (0 to 1) that the policy's response is better when shown first
    # and when shown second; None if the judge abstained
    shown_first: float | None
    shown_second: float | None

    @property
    def decisions(self) -> tuple[float, float] | None:
        """1 for the policy, 0 for the reference, 1/2 for neither, in each order; None if either is an abstention."""
        if self.shown_first is None or self.shown_second is None:
            return None
        first, second = (np.sign([self.shown_first - 0.5, self.shown_second - 0.5]) + 1) / 2
        return float(first), float(second)


@dataclass(frozen=True, slots=True)
class Against:
    """A policy compared with the reference by one measure."""

    difference: Estimate  # mean reward of the policy minus that of the reference, paired by prompt
    # probability that a sample of the policy has a higher reward than one of the reference; a tie counts half
    win_rate: Estimate
    ties: int  # number of the `pairs` of samples with equal rewards
    pairs: int


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """A policy compared with the reference by a judge that sees both responses, in both orders."""

    # share of the orders in which the policy's response is preferred; None if the judge always abstained
    win_rate: Estimate | None
    first_shown: Estimate | None  # share of the verdicts for the response shown first: 1/2 without position bias
    pairs: int  # number of judged pairs
    abstained: int  # pairs without a verdict in both orders, which are excluded
    inconsistent: int  # pairs whose two verdicts differ; they count half in the win rate


@dataclass(frozen=True, slots=True)
class Drift:
    """One property of a policy's answers, and its change from the reference (None for the reference)."""

    level: Estimate
    change: Estimate | None


@dataclass(frozen=True, slots=True, eq=False)
class PolicyResult:
    """All measures of one policy."""

    name: str
    samples: int
    rewards: Mapping[str, Estimate]  # mean reward by measure
    unscored: Mapping[str, int]  # number of samples without a reward, by measure, if above 0
    against: Mapping[str, Against]  # comparison with the reference, by measure; empty for the reference
    judged: Mapping[str, JudgeResult]  # comparison with the reference, by judge; empty for the reference
    # KL divergence from the reference in nats, over the policy's own samples; None for the reference, or if unknown
    kl: Estimate | None
    drift: Mapping[str, Drift]  # by property; see `comparison.DRIFTS`
    # the main measure of the best samples by the proxy; None if either measure is missing
    best_of_n: BestOfNCurve | None
    trivial: bool = False  # whether it is a trivial policy (see `PolicySamples`)
    # its main measure minus that of each earlier policy and each trivial one, paired by prompt; empty for the reference
    # and for trivial policies
    minus: Mapping[str, Estimate] = field(default_factory=dict)
    # by name, the mean of each part of the gold reward and its change from the reference
    parts: Mapping[str, Drift] = field(default_factory=dict)
    # at temperature 0, the mean of each measure and of each part of gold (with its prefix); empty if unknown. A policy
    # that is better only when sampled has become more certain, not more able.
    greedy: Mapping[str, Drift] = field(default_factory=dict)
    # for each earlier policy, each part of the gold reward minus that policy's, paired by prompt
    parts_minus: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        found = asdict(replace(self, best_of_n=None))  # it contains arrays
        del found["name"]
        curve = None if self.best_of_n is None else self.best_of_n.to_dict()
        return {"against_reference": found.pop("against"), **found, "best_of_n": curve}


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason why a higher reward may not mean better answers."""

    # a part of the gold reward fell, or the reward is below that of a trivial policy or not shown to be above it
    kind: Literal["part fell", "below trivial", "not above trivial"]
    # the part ("" for the whole reward), the other policy, and the difference from it
    cases: Sequence[tuple[str, str, Estimate]]


@dataclass(frozen=True, slots=True, eq=False)
class PolicyComparison:
    """Policies on the same prompts; the first of `written` and of `results` is the reference."""

    prompts: tuple[Prompt, ...]
    written: tuple[PolicySamples, ...]
    results: tuple[PolicyResult, ...]
    measures: tuple[str, ...]
    proxy: str | None = None  # the measure that policies were optimized for, if known
    # the measure that policies are judged by: gold, else the first one that is not the proxy; None without one
    main: str | None = None
    # by judge and policy, the verdicts that `judged` summarizes
    verdicts: Mapping[str, Mapping[str, Sequence[PairVerdict]]] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)  # settings and versions for results.json

    @property
    def reference(self) -> PolicyResult:
        return self.results[0]

    @property
    def policies(self) -> tuple[PolicyResult, ...]:
        """All results except the reference and trivial policies."""
        return tuple(result for result in self.results[1:] if not result.trivial)

    @property
    def trivial(self) -> tuple[PolicyResult, ...]:
        return tuple(result for result in self.results if result.trivial)

    @property
    def measure(self) -> str | None:
        """The measure that reports compare policies by: the main one, else the proxy, else None (only judges)."""
        return self.main or self.proxy

    def doubts(self, result: PolicyResult) -> list[Doubt]:
        """Why a policy's higher reward may not mean better answers; empty if its reward is not higher."""
        against = result.against.get(self.measure or "")
        if against is None or verdict(against.difference) != "better":
            return []
        changes = {self.reference.name: {name: part.change for name, part in result.parts.items() if part.change}}
        fell = [
            (name, other, change)
            for other, parts in (changes | dict(result.parts_minus)).items()
            for name, change in parts.items()
            if verdict(change) == "worse" and self.measure == GOLD
        ]
        trivial = [("", one.name, result.minus[one.name]) for one in self.trivial if one.name in result.minus]
        below = [case for case in trivial if verdict(case[2]) == "worse"]
        even = [case for case in trivial if verdict(case[2]) == "not shown"]
        found = (Doubt("part fell", fell), Doubt("below trivial", below), Doubt("not above trivial", even))
        return [doubt for doubt in found if doubt.cases]

    def to_dict(self) -> dict[str, object]:
        return {
            **self.details,
            "reference": self.reference.name,
            "n_prompts": len(self.prompts),
            "measures": list(self.measures),
            "proxy": self.proxy,
            "main": self.main,
            "policies": {result.name: result.to_dict() for result in self.results},
        }
