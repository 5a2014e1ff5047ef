"""Best-of-n sampling: the gold reward of the best of n responses by a proxy reward. Pure functions.

Best-of-n is the baseline for optimization: it needs no training and has an exact KL divergence. All `n` up to the
number of samples are estimated from the same samples, without bias (Nakano et al. 2021, arXiv 2112.09332, appendix I;
Gao et al. 2022, arXiv 2210.10760, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rrm_lm.evaluation.statistics import bootstrap
from rrm_lm.evaluation.statistics.metrics import Clusters, Estimate, Floats, cluster_index


@dataclass(frozen=True, slots=True, eq=False)
class BestOfNCurve:
    """The best-of-n curve of one policy, for n = 1 to N."""

    kl: Floats  # `(N,)` exact KL divergence from the policy, in nats
    gold: tuple[Estimate, ...]  # expected gold reward of the best of n by proxy
    proxy: tuple[Estimate, ...]  # expected proxy reward of the same response
    gain: tuple[Estimate, ...]  # gold reward of the best of n minus that of one sample, on the same prompts
    # gold_by_prompt, proxy_by_prompt: `(prompts, N)` the values per prompt
    gold_by_prompt: Floats
    proxy_by_prompt: Floats
    clusters: tuple[object, ...]  # `(prompts,)` prompt labels

    @property
    def n(self) -> list[int]:
        return list(range(1, len(self.kl) + 1))

    def to_dict(self) -> dict[str, object]:
        """The entries of results.json, one per n."""
        return {
            "n": self.n,
            "kl": self.kl.tolist(),
            **{name: [e.to_dict() for e in getattr(self, name)] for name in ("gold", "proxy", "gain")},
        }


def best_of_n_kl(n: ArrayLike) -> Floats:
    """KL divergence of best-of-n from the sampled policy, in nats: log n - (n - 1)/n.

    Exact if all rewards differ, else an upper bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    count = np.asarray(n, dtype=float)
    return np.log(count) - (count - 1) / count


def selection_weights(samples: int) -> Floats:
    """The probability `(N, N)` that the i-th lowest of N samples is the best of n of them: row n - 1, column i - 1.

    This is C(i - 1, n - 1) / C(N, n), the share of subsets of size n whose highest element is the i-th lowest. It is
    computed by recurrence from i to i - 1, because the binomials overflow.
    """
    n, i = np.arange(1, samples + 1)[:, None], np.arange(1, samples + 1)[None, :]
    # factor[n, i] is the weight of i divided by that of i + 1; it is 0 for i < n.
    factor = np.clip((i - n + 1) / i, 0.0, None)
    factor[:, -1] = (n / samples)[:, 0]
    return np.asarray(np.cumprod(factor[:, ::-1], axis=1)[:, ::-1], dtype=np.float64)


def expected_best(proxy: ArrayLike, gold: ArrayLike) -> Floats:
    """Expected gold reward of the best of n by proxy for each prompt and each n: `(prompts, N)`, column n - 1.

    This is the mean over all subsets of size n, which is unbiased for n fresh samples. Responses that tie for the best
    proxy reward count equally. `proxy` and `gold` are `(prompts, N)` rewards of N samples per prompt. Raises ValueError
    if the shapes differ, there are no samples, or a reward is not finite.
    """
    by, worth = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if by.shape != worth.shape or by.ndim != 2 or by.size == 0:
        raise ValueError(
            f"rewards must be two arrays of one shape (prompts, samples), found {by.shape} and {worth.shape}"
        )
    if not (np.isfinite(by).all() and np.isfinite(worth).all()):
        raise ValueError("a reward is not finite, so there is no best response")
    weights = selection_weights(by.shape[1])
    expected = np.empty(by.shape)
    for prompt, (row, values) in enumerate(zip(by, worth, strict=True)):
        _, place = np.unique(row, return_inverse=True)
        shared = np.bincount(place, values) / np.bincount(place)
        expected[prompt] = weights @ shared[np.sort(place)]
    return expected


def best_of_n(proxy: ArrayLike, gold: ArrayLike, clusters: Clusters) -> BestOfNCurve:
    """The best-of-n curve with 95% intervals over prompts. `proxy` and `gold` are `(prompts, N)` rewards that select
    and that measure the best response. Prompts with the same label in `clusters` (`(prompts,)`) are resampled together.
    Raises ValueError as `expected_best` does, or if there is not one label per prompt.
    """
    worth, chosen = expected_best(proxy, gold), expected_best(proxy, proxy)
    if len(clusters) != len(worth):
        raise ValueError(f"{len(clusters)} labels for {len(worth)} prompts")
    weights = bootstrap.prompt_weights(clusters)
    count = cluster_index(clusters)[1]
    prompts, samples = worth.shape

    def curve(values: Floats) -> tuple[Estimate, ...]:
        resampled = bootstrap.weighted_means(weights, values)
        return tuple(
            bootstrap.estimate(float(values[:, i].mean()), resampled[:, i], n=prompts * samples, clusters=count)
            for i in range(samples)
        )

    return BestOfNCurve(
        kl=best_of_n_kl(np.arange(1, samples + 1)),
        gold=curve(worth),
        proxy=curve(chosen),
        gain=curve(worth - worth[:, :1]),
        gold_by_prompt=worth,
        proxy_by_prompt=chosen,
        clusters=tuple(clusters),
    )
