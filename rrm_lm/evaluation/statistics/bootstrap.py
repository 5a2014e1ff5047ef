"""Intervals by resampling prompts, for estimates without a closed-form error. Pure functions.

The bootstrap resamples whole prompts (Cameron, Gelbach and Miller 2008, "pairs cluster bootstrap"), because samples of
one prompt are not independent. Intervals use expanded percentiles (Hesterberg 2015, "What teachers should know about
the bootstrap", section 4.3.1), because plain ones are too narrow for few prompts.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from rrm_lm.evaluation.statistics.metrics import LEVEL, Clusters, Estimate, Floats, cluster_index, t_quantile

DRAWS = 2000


def prompt_weights(clusters: Clusters, *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often each of `(n,)` observations, i.e. its prompt, is drawn: `(draws, n)`.

    Each row draws as many prompts as there are, with replacement. Equal arguments give equal weights, so several
    estimates can use the same resampled prompts.
    """
    index, count = cluster_index(clusters)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, index].astype(float)


def weighted_means(weights: Floats, values: Floats) -> Floats:
    """The means `(draws, ...)` of `values` `(n, ...)` under each row of `weights` `(draws, n)`.

    NaN values are ignored; a draw without values gives NaN.
    """
    known = np.isfinite(values)
    flat, there = np.where(known, values, 0.0).reshape(len(values), -1), known.reshape(len(values), -1)
    totals = weights @ there
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ flat) / totals
    return means.reshape(len(weights), *values.shape[1:])


def interval(draws: ArrayLike, clusters: int) -> tuple[float, float]:
    """The 95% interval of a number from its `(draws,)` bootstrap values, which may be infinite; NaN is ignored.

    With fewer than two prompts, the variance between prompts is unknown and the interval is infinite.
    """
    values = np.asarray(draws, dtype=float)
    values = values[~np.isnan(values)]
    if clusters < 2 or not values.size:
        return -math.inf, math.inf
    outside = float(scipy.stats.norm.cdf(-math.sqrt(clusters / (clusters - 1)) * t_quantile(clusters - 1)))
    outside = min(outside, (1 - LEVEL) / 2)
    # No interpolation, because values may be infinite.
    low = float(np.quantile(values, outside, method="inverted_cdf"))
    high = float(np.quantile(values, 1 - outside, method="inverted_cdf"))
    return low, high


def estimate(value: float, draws: ArrayLike, *, n: int, clusters: int) -> Estimate:
    """A number with its bootstrap interval, which always contains the number."""
    low, high = interval(draws, clusters)
    return Estimate(value, min(low, value), max(high, value), n, clusters)
