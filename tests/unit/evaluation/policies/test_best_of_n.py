"""Best-of-n by hand, by counting every subset, and in its limits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.evaluation.policies.best_of_n import best_of_n, best_of_n_kl, expected_best, selection_weights


def by_counting(proxy, gold, n):
    """The mean over all subsets of n, each with its ties drawn evenly."""
    values = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        worth = [gold[i] for i in subset if proxy[i] == best]
        values.append(sum(worth) / len(worth))
    return sum(values) / len(values)


def test_three_samples_by_hand():
    """Of the pairs of (1, 2, 3), one has 2 as its best and two have 3."""
    (row,) = expected_best([[1.0, 2.0, 3.0]], [[10.0, 40.0, 70.0]])
    assert row == pytest.approx([40.0, (40 + 70 + 70) / 3, 70.0])


def test_a_shared_best_is_drawn_evenly():
    (row,) = expected_best([[5.0, 5.0, 1.0]], [[0.0, 1.0, 9.0]])
    assert row == pytest.approx([10 / 3, 0.5, 0.5])


@given(st.data())
def test_it_is_the_mean_over_all_subsets(data):
    size = data.draw(st.integers(1, 6))
    proxy = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    gold = data.draw(st.lists(st.integers(-9, 9), min_size=size, max_size=size))
    (row,) = expected_best([proxy], [gold])
    assert row == pytest.approx([by_counting(proxy, gold, n) for n in range(1, size + 1)])


@given(st.permutations(range(6)))
def test_the_order_of_the_samples_does_not_matter(order):
    proxy, gold = np.array([[3.0, 1, 1, 2, 3, 0]]), np.array([[1.0, 2, 3, 4, 5, 6]])
    assert expected_best(proxy[:, order], gold[:, order]) == pytest.approx(expected_best(proxy, gold))


@pytest.mark.parametrize("samples", [1, 2, 7, 2000])
def test_the_chances_of_being_the_best_add_up(samples):
    weights = selection_weights(samples)
    assert weights.sum(axis=1) == pytest.approx(np.ones(samples))
    assert weights[0] == pytest.approx(np.full(samples, 1 / samples))
    assert weights[-1, -1] == 1 and not weights[-1, :-1].any()


def test_chances_are_the_binomial_ones():
    exact = [[math.comb(i - 1, n - 1) / math.comb(9, n) for i in range(1, 10)] for n in range(1, 10)]
    assert selection_weights(9) == pytest.approx(np.array(exact))


def test_kl_is_that_of_the_paper():
    assert best_of_n_kl([1, 2, 4]) == pytest.approx([0.0, math.log(2) - 0.5, math.log(4) - 0.75])


def test_it_is_unbiased():
    """With 8 samples of a uniform reward, best of 3 is worth 3/4 on average, as a fresh best of 3 is."""
    rewards = np.random.default_rng(1).random((20_000, 8))
    assert expected_best(rewards, rewards)[:, 2].mean() == pytest.approx(3 / 4, abs=0.003)


def test_the_curve_has_intervals_over_prompts():
    random = np.random.default_rng(0)
    proxy = random.normal(size=(60, 4))
    gold = proxy + random.normal(size=(60, 4)) + random.normal(size=(60, 1))
    curve = best_of_n(proxy, gold, [f"p{i}" for i in range(60)])
    assert curve.n == [1, 2, 3, 4]
    assert curve.gold[0].value == pytest.approx(gold.mean())
    assert curve.proxy[-1].value == pytest.approx(proxy.max(axis=1).mean())
    assert all(e.low < e.value < e.high and (e.n, e.clusters) == (240, 60) for e in (*curve.gold, *curve.proxy))
    # The bootstrap agrees with the formula for a mean.
    half = 2.0 * gold.mean(axis=1).std(ddof=1) / math.sqrt(60)
    assert curve.gold[0].high - curve.gold[0].value == pytest.approx(half, rel=0.15)
    # What the prompts have in common is taken out of the gain.
    assert curve.gain[0].low == curve.gain[0].high == 0
    assert curve.gain[3].high - curve.gain[3].low < curve.gold[3].high - curve.gold[3].low
    assert curve.gain[3].low > 0


def test_prompts_of_one_label_are_resampled_together():
    """Copies of a prompt under its own label tell nothing new."""
    random = np.random.default_rng(3)
    proxy, gold = random.normal(size=(20, 3)), random.normal(size=(20, 3))
    labels = [str(i) for i in range(20)]
    once = best_of_n(proxy, gold, labels)
    twice = best_of_n(np.tile(proxy, (2, 1)), np.tile(gold, (2, 1)), labels * 2)
    assert twice.gold[2].low == pytest.approx(once.gold[2].low) and twice.gold[2].clusters == 20


def test_one_prompt_has_no_interval():
    curve = best_of_n([[1.0, 2.0]], [[3.0, 4.0]], ["only"])
    assert (curve.gold[1].value, curve.gold[1].low, curve.gold[1].high) == (4.0, -math.inf, math.inf)
    assert curve.to_dict()["kl"] == pytest.approx([0.0, math.log(2) - 0.5])


@pytest.mark.parametrize(
    ("proxy", "gold", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], "two arrays of one shape"),
        ([], [], "two arrays of one shape"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "not finite"),
        ([[1.0, 2.0]], [[1.0, math.inf]], "not finite"),
    ],
)
def test_rewards_that_decide_nothing_are_refused(proxy, gold, message):
    with pytest.raises(ValueError, match=message):
        expected_best(proxy, gold)


def test_labels_must_be_one_for_each_prompt():
    with pytest.raises(ValueError, match="1 labels for 2 prompts"):
        best_of_n([[1.0], [2.0]], [[1.0], [2.0]], ["a"])
