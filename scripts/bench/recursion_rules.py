"""Does recursion help? Intervals over seeds, and the rules that decide the verdict, as pure functions.

Arms: U, unassisted; A, assisted by helpers; C, A's checks spent on fully measured pairs; G, gold labels; Sh, notes
about another response (a sham). All arms of a seed have the same pairs and are tested on the same fresh questions, so
their differences are paired by seed. Intervals are Student's t intervals over the means of the seeds; those of
differences in accuracy, from five seeds on, are also over the questions, which all seeds share (recursion_summary.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rrm_lm.evaluation.statistics.metrics import t_quantile

CORE: tuple[str, ...] = ("U", "A", "C", "G")  # at every seed
CONTROLS: tuple[str, ...] = ("Sh", "C0", "C+", "A0")  # at the control seeds
BEST_OF = (1, 4, 16)
TESTABLE = 0.03  # least gain in accuracy of gold labels over no assistance; with less, there is nothing to test
GOOD_HELPER = 0.7  # balanced accuracy
AIM = 0.06


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95% interval; infinite ends are unknown."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        return {name: one if math.isfinite(one) else None for name, one in zip(self.__slots__, self.ends, strict=True)}

    @property
    def ends(self) -> tuple[float, float, float]:
        return self.value, self.low, self.high


def over_seeds(means: Sequence[float]) -> Interval:
    """The mean of one value per seed with Student's t interval, which is unbounded for a single seed."""
    values = np.asarray(means, dtype=float)
    if values.size < 2:
        return Interval(float(values.mean()), -math.inf, math.inf)
    half = t_quantile(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def share(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """The ratio of two paired means with its interval by Fieller (1954), "Some problems in interval estimation".

    None if the interval of the denominator includes 0: no ratio is then excluded.
    """
    top, bottom = (np.asarray(one, dtype=float) for one in (above, below))
    denominator = over_seeds(below)
    if denominator.low <= 0 <= denominator.high:
        return None
    a, b, t2 = float(top.mean()), float(bottom.mean()), t_quantile(top.size - 1) ** 2
    variances = np.cov(top, bottom, ddof=1) / top.size
    # The ratios r for which a - r b is within t standard errors of 0: between the roots of x r^2 - 2 y r + z.
    x, y, z = b * b - t2 * variances[1, 1], a * b - t2 * variances[0, 1], a * a - t2 * variances[0, 0]
    root = math.sqrt(max(0.0, y * y - x * z))
    return Interval(a / b, float((y - root) / x), float((y + root) / x))


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
    sham: Interval | None
    over_sham: Interval | None
    best_gain: Interval
    policy_gain: Interval | None
    curve: Sequence[float]
    helpers: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Did it help? "helped", "not shown to help" or "not testable", with the rules that it broke as reasons."""

    verdict: str
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def conclude(found: Findings) -> Conclusion:
    """Apply the rules. Accuracies are judged by their intervals, gold by its value.

    Not testable: G - U is under 3 points. Else it is not shown to help when the interval of A - U, A - C or A - Sh
    includes 0; Sh is above U; the lower end of a helper's balanced accuracy is under .7; accuracy rises and best-of-n
    or the policy's gold does not; or A's gold falls as n grows.
    """
    if found.room.value < TESTABLE:
        points = f"{100 * found.room.value:.1f}"
        return Conclusion("not testable", (f"true labels gain only {points} points over the overseer alone",))
    reasons = []
    if found.gain.low <= 0:
        reasons.append("the interval of A - U includes 0")
    if found.over_cost.low <= 0:
        reasons.append("the interval of A - C, which costs the same, includes 0")
    if found.sham is None or found.over_sham is None:
        reasons.append("the sham (Sh) was not run")
    elif found.over_sham.low <= 0:
        reasons.append("the interval of A - Sh, notes on other responses, includes 0")
    if found.sham is not None and found.sham.low > 0:
        reasons.append("notes on other responses (Sh) are better than no notes")
    reasons += [
        f"the helper {name} is not above .7 with its interval"
        for name, one in found.helpers.items()
        if one.low < GOOD_HELPER
    ]
    rises = found.gain.value > 0
    if rises and found.best_gain.value <= 0:
        reasons.append("accuracy rises, best-of-16 gold does not")
    if rises and found.policy_gain is not None and found.policy_gain.value <= 0:
        reasons.append("accuracy rises, the policy's gold does not")
    if any(later < earlier for earlier, later in zip(found.curve, found.curve[1:], strict=False)):
        reasons.append("A's gold falls as n grows")
    return Conclusion("not shown to help" if reasons else "helped", tuple(reasons))
