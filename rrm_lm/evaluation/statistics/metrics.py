"""Accuracy, calibration and length bias of a reward model, with intervals clustered by prompt. Pure functions.

All intervals use the same variance estimator, so numbers on a page are comparable. Comparisons of one prompt are not
independent, so the variance is cluster-robust: with `G` prompts and the linearized contribution `u_g` of prompt `g` to
the estimate, `V = G / (G - 1) * sum_g u_g^2` (Cameron and Miller 2015, "A practitioner's guide to cluster-robust
inference", section II; the sandwich estimator of a regression on a constant). Quantiles are Student's t with `G - 1`
degrees of freedom.

- Shares (accuracy): the variance gives an effective sample size for Wilson's interval (Korn and Graubard 1998; Dean and
  Pagano 2015 recommend it). It stays in [0, 1] and has a positive width even if every answer is right.
- Differences and means: estimate plus or minus t times the standard error.
- Correlations: the same on Fisher's z scale.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import scipy  # loads submodules lazily
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Clusters = Sequence[Hashable] | NDArray

LEVEL = 0.95
FEWEST_RUNS = 5  # for an interval over runs: with fewer, its simulated coverage is as low as 87%
_MOST_BINS = 10  # of a calibration
_NO_ERROR = 1e-12  # a standard error below this is rounding


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval: `value` in [low, high], from `n` observations in `clusters` prompts."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OverRuns(Estimate):
    """The mean over trained runs. With fewer than `FEWEST_RUNS` of them, `low` and `high` are their range."""

    by_run: tuple[float, ...]  # the mean of each run, in the order of the runs
    kind: str  # what `low` and `high` are, for reports


Verdict = Literal["better", "worse", "not shown"]


def verdict(found: Estimate, at: float = 0.0) -> Verdict:
    """What an estimate shows, where higher is better: whether its interval is above `at`, below it, or neither.

    All statements in reports are made by this function. A range of a few runs shows nothing.
    """
    if isinstance(found, OverRuns) and len(found.by_run) < FEWEST_RUNS:
        return "not shown"
    return "better" if found.low > at else "worse" if found.high < at else "not shown"


def cluster_index(clusters: Clusters) -> tuple[Ints, int]:
    """Convert `(n,)` labels to `(n,)` integers from 0 in any order; also return the number of distinct labels."""
    numbers = {label: i for i, label in enumerate(sorted(set(clusters), key=repr))}
    return np.fromiter((numbers[label] for label in clusters), dtype=np.intp), len(numbers)


def clustered_se(contributions: ArrayLike, clusters: Clusters, weights: ArrayLike | None = None) -> tuple[float, int]:
    """Standard error of a sum of linearized contributions `(n,)`, and the number of clusters `G`.

    A contribution is an observation's part of the estimate's error: `(x_i - mean) / n` for a mean. The `(n,)` `weights`
    of the observations in the estimate are equal by default. A cluster with a share `w` of the weight pulls the
    estimate toward itself, so its error looks smaller by `1 - w`, which is divided out: for a weighted mean, this is
    the jackknife over clusters (CR3: Bell and McCaffrey 2002). With one cluster, the variance between clusters is
    unknown and the standard error is NaN.
    """
    values = np.asarray(contributions, dtype=float)
    index, count = cluster_index(clusters)
    if count < 2:
        return math.nan, count
    weight = np.bincount(index, weights=None if weights is None else np.asarray(weights, dtype=float), minlength=count)
    sums = np.bincount(index, weights=values, minlength=count) / (1 - weight / weight.sum())
    return float(math.sqrt((count - 1) / count * float(sums @ sums))), count


def t_quantile(df: float) -> float:
    """Two-sided 95% quantile of Student's t; infinite without degrees of freedom."""
    return float(scipy.stats.t.ppf(0.5 + LEVEL / 2, df)) if df > 0 else math.inf


def share(
    values: ArrayLike, clusters: Clusters, *, weights: ArrayLike | None = None, strata: Clusters | None = None
) -> Estimate:
    """The mean of values in [0, 1] (right 1, tied 1/2, wrong 0) and its interval clustered by prompt.

    The effective sample size for Wilson's interval is `p (1 - p) / V`, at most `n`, times `(z / t)^2` for the
    uncertainty of `V` (Korn and Graubard 1998). If `V` cannot be estimated, because there is one prompt or no variation
    (all right, all wrong), it is the number of prompts. All arguments are `(n,)`; `clusters` are prompt labels, and the
    positive `weights` are equal by default. `strata` are labels of groups with sizes fixed by design (the subsets of a
    benchmark): variation between groups does not count as error. Raises ValueError if there are no values.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("the share of no values is not defined")
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    value = float(np.average(x, weights=w))
    w = w / w.sum()
    centre = np.full_like(x, value)
    if strata is not None:
        which, number = cluster_index(strata)
        centre = (np.bincount(which, w * x, number) / np.bincount(which, w, number))[which]
    se, count = clustered_se(w * (x - centre), clusters, w)
    spread = value * (1 - value)
    effective = float(count)
    if se > _NO_ERROR:
        kish = 1 / float(w @ w)  # Kish's effective sample size; n if weights are equal
        z = float(scipy.stats.norm.ppf(0.5 + LEVEL / 2))
        effective = min(spread / se**2, kish) * (z / t_quantile(count - 1)) ** 2
    from statsmodels.stats.proportion import proportion_confint  # imports pandas, which takes a second

    wilson = proportion_confint(value * effective, effective, alpha=1 - LEVEL, method="wilson")
    low, high = np.asarray(wilson, dtype=float).tolist()
    # Rounding must not move the estimate outside its interval.
    return Estimate(value, min(low, value), max(high, value), x.size, count)


def mean_estimate(values: ArrayLike, clusters: Clusters, *, bounds: tuple[float, float]) -> Estimate:
    """The mean of `(n,)` values and its t interval clustered by prompt, clipped to `bounds`, the values' range.

    With one prompt, the interval is `bounds`. Without variation between prompts, the half width is half the range times
    Wilson's upper limit for zero events in `G` trials, `z^2 / (G + z^2)`. Raises ValueError if there are no values.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("the mean of no values is not defined")
    value = float(x.mean())
    se, count = clustered_se((x - value) / x.size, clusters)
    return _bounded(value, se, count - 1, bounds, x.size, count)


def paired_difference(first: ArrayLike, second: ArrayLike, clusters: Clusters) -> Estimate:
    """How much more often the first model is right than the second **on the same examples**, with a clustered interval.

    Pairing removes the variance in example difficulty, which is most of the variance of either accuracy. `first` and
    `second` are `(n,)` correctness in [0, 1] of each model, or `(runs, n)` (see `over_runs`); `clusters` are `(n,)`
    prompt labels. Raises ValueError if the shapes differ or there are no examples.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.shape[-1] != len(clusters) or a.ndim not in (1, 2):
        raise ValueError(
            f"paired models need equal shapes (n,) or (seeds, n), found {a.shape}, {b.shape}, n={len(clusters)}"
        )
    difference = a - b
    if difference.ndim == 2 and difference.shape[0] > 1:
        return over_runs(difference, clusters, bounds=(-1.0, 1.0))
    return mean_estimate(difference.reshape(-1), clusters, bounds=(-1.0, 1.0))


def over_runs(
    values: ArrayLike, clusters: Clusters, *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> OverRuns:
    """The mean of several trained runs on the same prompts, with an interval for new runs **and** new prompts.

    The variance is that of the run means plus that of the prompt means, with Satterthwaite's degrees of freedom. The
    noise of single values is in both, so the interval is somewhat wide; subtracting it (Cameron, Gelbach and Miller
    2011, "Robust inference with multiway clustering") covers too little with few runs. The simulated coverage at five
    runs is at least 94%, whichever of the two variances is larger; that of a t interval over the run means alone falls
    to 70% if prompts differ more than runs do.

    The values are `(runs, n)`, with a ValueError for fewer than two runs, and within `bounds`; the clusters are `(n,)`
    prompt labels. Pass the differences of two methods to compare them, run by run.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 2 or len(x) < 2 or x.shape[1] != len(clusters) or not x.size:
        raise ValueError(f"several runs need the shape (runs, n) with n={len(clusters)}, found {x.shape}")
    runs, n = x.shape
    by_run = x.mean(axis=1)
    value = float(by_run.mean())
    by_prompt, count = clustered_se((x.mean(axis=0) - value) / n, clusters)
    if runs < FEWEST_RUNS:
        return OverRuns(
            value, float(by_run.min()), float(by_run.max()), n, count, (*by_run.tolist(),), f"range of {runs} runs"
        )
    between = float(by_run.std(ddof=1)) / math.sqrt(runs)
    parts = by_prompt**4 / max(count - 1, 1) + between**4 / (runs - 1)
    variance = by_prompt**2 + between**2
    found = _bounded(value, math.sqrt(variance), variance**2 / parts if parts > 0 else count - 1, bounds, n, count)
    kind = f"95% interval over {runs} runs and {count} prompts"
    return OverRuns(found.value, found.low, found.high, n, count, (*by_run.tolist(),), kind)


def needed(first: ArrayLike, second: ArrayLike, clusters: Clusters, difference: float = 0.01) -> int | None:
    """How many examples show a true difference in accuracy with a probability of 80%, if they are like these `(n,)`.

    None if it cannot be estimated: there is one prompt, or both models are right on the same examples.
    """
    d = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    se, _ = clustered_se((d - d.mean()) / d.size, clusters)
    if not se > _NO_ERROR:
        return None
    quantiles = scipy.stats.norm.ppf(0.5 + LEVEL / 2) + scipy.stats.norm.ppf(0.8)
    return math.ceil(d.size * (quantiles * se / difference) ** 2)


def _bounded(value: float, se: float, df: float, bounds: tuple[float, float], n: int, count: int) -> Estimate:
    low, high = bounds
    if math.isnan(se):
        return Estimate(value, low, high, n, count)
    half = t_quantile(df) * se
    if se < _NO_ERROR:
        z2 = float(scipy.stats.norm.ppf(0.5 + LEVEL / 2)) ** 2
        half = (high - low) / 2 * z2 / (count + z2)
    return Estimate(value, max(low, value - half), min(high, value + half), n, count)


def balanced_accuracy(truth: Sequence[Hashable], said: Sequence[Hashable], clusters: Clusters) -> Estimate:
    """The mean recall over the true labels, so rare and common labels count equally.

    With recalls `r_k` of the K occurring labels, an observation of label k contributes `(right - r_k) / (K n_k)`. All
    arguments are `(n,)` labels. Raises ValueError if there are no observations.
    """
    index, kinds = cluster_index(truth)
    if not kinds:
        raise ValueError("the balanced accuracy of no observations is not defined")
    right = np.fromiter((a == b for a, b in zip(truth, said, strict=True)), dtype=float)
    counts = np.bincount(index, minlength=kinds)
    recalls = np.bincount(index, weights=right, minlength=kinds) / counts
    weights = 1 / (kinds * counts[index])
    se, count = clustered_se(weights * (right - recalls[index]), clusters, weights)
    return _bounded(float(recalls.mean()), se, count - 1, (0.0, 1.0), right.size, count)


def correctness(margins: ArrayLike) -> Floats:
    """1 where the chosen response wins, 1/2 at a tie, 0 where it loses. Shape `(n,)`, as the margins."""
    return (np.sign(np.asarray(margins, dtype=float)) + 1) / 2


def preference_probability(margins: ArrayLike) -> Floats:
    """P(chosen is preferred) under Bradley and Terry (1952): the sigmoid of the margin. Shape `(n,)`."""
    return scipy.special.expit(np.asarray(margins, dtype=float))


def brier(margins: ArrayLike, clusters: Clusters) -> Estimate:
    """Mean squared error of P(chosen) (Brier 1950): 0 is perfect; always predicting 50% gives 1/4."""
    return mean_estimate((1 - preference_probability(margins)) ** 2, clusters, bounds=(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions of similar confidence: the mean confidence, and how often the model was right."""

    confidence: float
    accuracy: Estimate

    def to_dict(self) -> dict[str, float | int]:
        return {"confidence": self.confidence, **self.accuracy.to_dict()}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected calibration error, its bins, and its value by chance."""

    ece: float  # sum over bins of (share of examples in the bin) times |confidence - accuracy|; 0 to 1/2
    # The 95th percentile of the ECE of a perfectly calibrated model with as many prompts. Infinite if a bin holds
    # comparisons of one prompt only, whose variation is unknown.
    by_chance: float
    # mean of accuracy minus confidence: positive if the model is underconfident, negative if overconfident
    modesty: Estimate
    bins: tuple[ReliabilityBin, ...]  # from least to most confident


def calibration(margins: ArrayLike, clusters: Clusters, *, draws: int = 1000) -> Calibration:
    """Calibration of the preference probability, in bins of equal mass (Nixon et al. 2019, "Measuring calibration").

    P(chosen) has only one label, because the chosen response always comes first. So the **predicted winner** is
    evaluated: confidence `sigmoid(|margin|)`, at least 1/2, against whether that response was the chosen one (a tie is
    half right at confidence 1/2).

    Equal confidences share a bin, so the result does not depend on the order of the examples. `by_chance` flips the
    sign of each prompt's deviations within the bins at random (wild cluster bootstrap: Cameron, Gelbach and Miller
    2008; fixed seed), after the correction of :func:`clustered_se` in each bin. `margins` is `(n,)`, and `clusters`
    `(n,)` prompt labels. There are fewer than ten bins if one would have under twenty examples. Raises
    ValueError if there are no margins.
    """
    m = np.asarray(margins, dtype=float)
    if m.size == 0:
        raise ValueError("the calibration of no predictions is not defined")
    confidence, right = scipy.special.expit(np.abs(m)), correctness(m)
    bins = max(1, min(_MOST_BINS, m.size // 20))
    ranks = scipy.stats.rankdata(confidence, method="average")
    which = np.minimum(((ranks - 0.5) / m.size * bins).astype(np.intp), bins - 1)
    _, which = np.unique(which, return_inverse=True)
    bins = int(which.max()) + 1
    index, count = cluster_index(clusters)
    rows = tuple(
        ReliabilityBin(float(confidence[which == b].mean()), share(right[which == b], index[which == b]))
        for b in range(bins)
    )
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)
    ece = float(np.abs(gaps).sum() / m.size)

    in_bin = np.bincount(which, minlength=bins)
    deviations = right - confidence - (gaps / in_bin)[which]
    sums, sizes = np.zeros((2, count, bins))
    np.add.at(sums, (index, which), deviations)
    np.add.at(sizes, (index, which), 1)
    known = bool((sizes < in_bin).all())  # else, a bin has one prompt
    sums /= np.where(sizes < in_bin, 1 - sizes / in_bin, 1)
    random = np.random.default_rng(0)
    block = max(1, 4_000_000 // count)  # signs of one block take about 32 MB
    flips = [random.choice((-1.0, 1.0), size=(min(block, draws - i), count)) @ sums for i in range(0, draws, block)]
    by_chance = float(np.quantile(np.abs(np.concatenate(flips)).sum(axis=1) / m.size, LEVEL)) if known else math.inf
    modesty = mean_estimate(right - confidence, clusters, bounds=(-1.0, 0.5))
    return Calibration(ece, by_chance, modesty, rows)


def correlation(x: ArrayLike, y: ArrayLike, clusters: Clusters) -> Estimate | None:
    """Pearson's correlation of two `(n,)` arrays with an interval clustered by prompt; None if undefined.

    A point contributes `zx zy - r (zx^2 + zy^2) / 2` over n to the error of `r` (influence function: Devlin,
    Gnanadesikan and Kettenring 1975); the interval is computed on Fisher's z scale.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    za, zb = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    r = float(np.clip((za * zb).mean(), -1.0, 1.0))
    se, count = clustered_se((za * zb - r * (za**2 + zb**2) / 2) / a.size, clusters)
    if 1 - r * r < 1e-12:
        return Estimate(r, r, r, a.size, count)
    if math.isnan(se):
        return Estimate(r, -1.0, 1.0, a.size, count)
    z, half = math.atanh(r), t_quantile(count - 1) * se / (1 - r * r)
    return Estimate(r, min(math.tanh(z - half), r), max(math.tanh(z + half), r), a.size, count)


@dataclass(frozen=True, slots=True)
class LengthCorrelation:
    """Correlation of reward with response length over distinct responses; None if undefined.

    `within` only compares responses to the same prompt, where length bias can change a ranking.
    """

    pearson: Estimate | None
    spearman: Estimate | None
    within_pearson: Estimate | None
    within_spearman: Estimate | None


def length_correlation(
    rewards: ArrayLike, lengths: ArrayLike, prompts: Clusters, clusters: Clusters | None = None
) -> LengthCorrelation:
    """Pearson's and Spearman's correlation of reward with length, overall and within prompts.

    Within prompts, the prompt's mean is subtracted from the values (or from their ranks among the prompt's responses).
    Only prompts with at least two responses count. `rewards` and `lengths` are `(n,)`, one entry per distinct response;
    `prompts` are `(n,)` labels of its exact prompt, and `clusters` `(n,)` labels for the interval, if coarser.
    """
    r, length = np.asarray(rewards, dtype=float), np.asarray(lengths, dtype=float)
    groups, _ = cluster_index(prompts if clusters is None else clusters)
    index, count = cluster_index(prompts)
    sizes = np.bincount(index, minlength=count)[index] if r.size else np.zeros(0)
    several = sizes > 1

    def centred(x: Floats) -> Floats:
        means = np.bincount(index, weights=x, minlength=count) / np.bincount(index, minlength=count)
        return (x - means[index])[several]

    within_pearson = within_spearman = None
    if several.any():
        within_pearson = correlation(centred(r), centred(length), groups[several])
        within_spearman = correlation(
            centred(ranks_within(r, index)), centred(ranks_within(length, index)), groups[several]
        )
    spearman = correlation(scipy.stats.rankdata(r), scipy.stats.rankdata(length), groups) if r.size else None
    return LengthCorrelation(correlation(r, length, groups), spearman, within_pearson, within_spearman)


def ranks_within(values: Floats, index: Ints) -> Floats:
    """Ranks (from 1, ties averaged) of `(n,)` values among those of the same group `(n,)`."""
    ranks = np.empty(len(values))
    order = np.argsort(index, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(index[order])) + 1):
        ranks[rows] = scipy.stats.rankdata(values[rows])
    return ranks
