"""Does recursion help? The rules that decide the verdict on an experiment with five arms, as pure functions.

Arms: U, unassisted; A, assisted by helpers; Sh, notes about another response (a sham); C, A's checks spent on fully
measured pairs; G, gold labels. Everything is paired: all arms of a seed have the same pairs and are tested on the same
fresh questions. The verdict depends on Student's t interval over the means of the seeds. A bootstrap that resamples
seeds and questions (Owen 2007, "The pigeonhole bootstrap") is reported, too, but nothing is concluded from it: with
three seeds, its 95% intervals cover about 75%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrm_lm.evaluation.statistics.metrics import t_quantile

ARMS: tuple[str, ...] = ("U", "A", "Sh", "C", "G")
BEST_OF = (1, 4, 16)
DRAWS = 4000
TESTABLE = 0.03  # least gain in accuracy of gold labels over no assistance; with less, there is nothing to test
GOOD_HELPER = 0.7  # balanced accuracy
AIM = 0.06

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


class Crossed:
    """Bootstrap of values with a seed and a question each.

    No interval is wider than the range of the values, so with few seeds that differ more than questions do, it covers
    less than 95% (three such seeds: about 75%).

    Args:
        seeds, questions: Their numbers. Every seed answers the same questions.
        draws: Number of resamples. Equal sizes give equal resamples, so differences between arms are paired.
    """

    def __init__(self, seeds: int, questions: int, draws: int = DRAWS) -> None:
        rng = np.random.default_rng(0)
        self.by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
        self.by_question = rng.multinomial(questions, np.full(questions, 1 / questions), size=draws) / questions

    def draws(self, values: Floats) -> Floats:
        """The means `(draws,)` of `(seeds, questions)` values."""
        return np.einsum("ds,sq,dq->d", self.by_seed, values, self.by_question)

    def mean(self, values: Floats) -> Interval:
        """The mean with its interval."""
        return interval(float(values.mean()), self.draws(values))

    def ratio(self, above: Floats, below: Floats) -> Interval:
        """The ratio of two means. Draws whose denominator is 0 do not count."""
        top, bottom = self.draws(above), self.draws(below)
        known = np.abs(bottom) > 1e-9
        value = float(above.mean() / below.mean()) if abs(below.mean()) > 1e-9 else float("nan")
        return interval(value, top[known] / bottom[known])


def over_seeds(means: Sequence[float]) -> Interval:
    """The mean of one value per seed with Student's t interval, which is unbounded for a single seed."""
    values = np.asarray(means, dtype=float)
    if values.size < 2:
        return Interval(float(values.mean()), float("-inf"), float("inf"))
    half = t_quantile(values.size - 1) * float(values.std(ddof=1)) / float(np.sqrt(values.size))
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def interval(value: float, draws: Floats) -> Interval:
    """The percentile interval of bootstrap draws, extended to contain the value."""
    if not draws.size:
        return Interval(value, float("-inf"), float("inf"))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True, slots=True)
class Findings:
    """The differences that the rules look at.

    Attributes:
        gain: Reward accuracy of A minus that of U.
        room: Reward accuracy of G minus that of U.
        over_cost: Reward accuracy of A minus that of C.
        sham: Reward accuracy of Sh minus that of U.
        over_sham: Reward accuracy of A minus that of Sh.
        best_gain: Best-of-16 gold of A minus that of U.
        policy_gain: Gold of A's trained policy minus that of U's; None where none was trained.
        curve: Best-of-n gold of A at 1, 4 and 16.
        helpers: Balanced accuracy of each helper.
    """

    gain: Interval
    room: Interval
    over_cost: Interval
    sham: Interval
    over_sham: Interval
    best_gain: Interval
    policy_gain: Interval | None
    curve: Sequence[float]
    helpers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Did it help? "helped", "not shown to help" or "not testable", with the rules that it broke as reasons."""

    verdict: str
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def conclude(found: Findings) -> Conclusion:
    """Apply the rules.

    Not testable: G - U is under 3 points. Else it is not shown to help when the interval of A - U, A - C or A - Sh
    includes 0; a helper's balanced accuracy is under .7; accuracy rises and best-of-n or the policy's gold does not;
    or A's gold falls as n grows. The rules were written down before the committed experiment, and made stricter after
    it: its intervals were then a bootstrap over three seeds, and A had to be above C without an interval.
    """
    if found.room.value < TESTABLE:
        points = f"{100 * found.room.value:.1f}"
        return Conclusion("not testable", (f"true labels gain only {points} points over the overseer alone",))
    reasons = []
    if found.gain.low <= 0:
        reasons.append("the interval of A - U includes 0")
    if found.over_cost.low <= 0:
        reasons.append("the interval of A - C, which costs the same, includes 0")
    if found.over_sham.low <= 0:
        reasons.append("notes on other responses (Sh) are about as good as A")
    reasons += [f"the helper {name} is under .7" for name, value in found.helpers.items() if value < GOOD_HELPER]
    rises = found.gain.value > 0
    if rises and found.best_gain.value <= 0:
        reasons.append("accuracy rises, best-of-16 gold does not")
    if rises and found.policy_gain is not None and found.policy_gain.value <= 0:
        reasons.append("accuracy rises, the policy's gold does not")
    if any(later < earlier for earlier, later in zip(found.curve, found.curve[1:], strict=False)):
        reasons.append("A's gold falls as n grows")
    return Conclusion("not shown to help" if reasons else "helped", tuple(reasons))
