"""Resampled prompts, and intervals that hold what they promise."""

import math

import numpy as np
import pytest

from rrm_lm.evaluation.statistics import bootstrap


def test_every_draw_has_as_many_prompts_as_there_are():
    weights = bootstrap.prompt_weights(["a", "b", "c", "d"], draws=50)
    assert weights.shape == (50, 4)
    assert (weights.sum(axis=1) == 4).all()
    assert len(np.unique(weights, axis=0)) > 10


def test_observations_of_one_prompt_are_drawn_together():
    weights = bootstrap.prompt_weights(["a", "b", "a", "b", "c"], draws=200)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 3]).all()
    assert not (weights[:, 0] == weights[:, 1]).all()


def test_the_same_seed_gives_the_same_prompts():
    first, again, other = (bootstrap.prompt_weights(range(9), draws=3, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()


def test_means_leave_out_what_is_missing():
    weights = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0], [2.0, 1.0, 0.0]])
    values = np.array([[2.0, math.nan], [5.0, 7.0], [math.nan, 1.0]])
    means = bootstrap.weighted_means(weights, values)
    assert means[0] == pytest.approx([3.5, 7.0])
    assert math.isnan(means[1, 0]) and means[1, 1] == 1.0
    assert means[2] == pytest.approx([3.0, 7.0])


def test_intervals_may_reach_to_infinity():
    values = [1.0] * 50 + [math.inf] * 50
    assert bootstrap.interval(values, 30) == (1.0, math.inf)
    found = bootstrap.estimate(0.5, values, n=7, clusters=30)
    assert (found.low, found.high, found.n) == (0.5, math.inf, 7)


def test_one_prompt_tells_nothing():
    assert bootstrap.interval([1.0, 1.0], 1) == (-math.inf, math.inf)
    assert bootstrap.interval([math.nan], 9) == (-math.inf, math.inf)


def test_intervals_of_few_prompts_hold_the_truth_as_often_as_they_say():
    """Plain percentiles would hold it in about 90% of the cases (measured over 4000), and these do in 94.5%."""
    random = np.random.default_rng(0)
    weights = bootstrap.prompt_weights(range(10), draws=600)
    held = 0
    for _ in range(1500):
        values = random.normal(size=10)
        low, high = bootstrap.interval(bootstrap.weighted_means(weights, values[:, None])[:, 0], 10)
        held += low <= 0 <= high
    assert 0.925 <= held / 1500 <= 0.97
