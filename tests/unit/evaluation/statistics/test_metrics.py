"""Metrics against numbers worked by hand, against other implementations, and against simulation."""

import math
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from rrm_lm.evaluation.statistics import metrics


def simulate(rng, prompts: int, share: float, correlation: float):
    """Correctness of 1 to 6 comparisons about each prompt, alike within a prompt (a beta-binomial)."""
    sizes = rng.integers(1, 7, prompts)
    scale = 1 / correlation - 1
    by_prompt = rng.beta(share * scale, (1 - share) * scale, prompts)
    clusters = np.repeat(np.arange(prompts), sizes)
    return (rng.random(clusters.size) < by_prompt[clusters]).astype(float), clusters


# ---- shares ----


@pytest.mark.parametrize(("prompts", "share"), [(12, 0.6), (60, 0.7), (60, 0.93), (200, 0.55)])
def test_share_intervals_cover_the_truth_when_comparisons_come_in_clusters(prompts, share):
    rng = np.random.default_rng(prompts)
    covered = naive = 0
    for _ in range(300):
        right, clusters = simulate(rng, prompts, share, 0.4)
        found = metrics.share(right, clusters)
        covered += found.low <= share <= found.high
        low, high = proportion_confint(right.sum(), right.size, method="wilson")
        naive += low <= share <= high
    assert covered / 300 >= 0.92
    assert naive / 300 < 0.88  # what happens to an interval that ignores the prompts


def test_share_without_clusters_is_about_wilsons_interval():
    right = np.repeat([1.0, 0.0], [140, 60])
    found = metrics.share(right, range(200))
    assert found.value == 0.7
    assert (found.n, found.clusters) == (200, 200)
    assert (found.low, found.high) == pytest.approx(proportion_confint(140, 200, method="wilson"), abs=0.002)


def test_share_is_wider_when_a_prompts_comparisons_agree():
    right = np.repeat([1.0, 0.0], [140, 60])
    alone = metrics.share(right, range(200))
    together = metrics.share(right, np.arange(200) // 10)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_share_of_one_value_throughout_has_the_width_of_as_many_prompts(value):
    found = metrics.share([value] * 30, np.arange(30) // 3)
    assert found.value == value
    assert (found.low, found.high) == pytest.approx(proportion_confint(10 * value, 10, method="wilson"))
    assert found.low <= value <= found.high
    assert found.high - found.low > 0.2


def test_share_with_one_prompt_says_almost_nothing():
    found = metrics.share([1, 0, 1, 1], ["only"] * 4)
    assert found.value == 0.75
    assert found.low < 0.3 and found.high > 0.97
    assert found.clusters == 1


def test_share_with_two_prompts_is_nearly_the_whole_range():
    found = metrics.share([1, 1, 1, 0, 0, 1], ["a"] * 3 + ["b"] * 3)
    assert found.low < 0.1 and found.high > 0.9


def test_share_weights_and_strata():
    # Two subsets of 4 and 2 examples that must weigh the same: (3/4 + 1/2) / 2.
    right = [1, 1, 1, 0, 1, 0]
    subsets = ["a"] * 4 + ["b"] * 2
    weights = [1 / 4] * 4 + [1 / 2] * 2
    found = metrics.share(right, range(6), weights=weights, strata=subsets)
    assert found.value == pytest.approx(0.625)
    # All the variation is between the subsets, whose sizes are fixed: the smallest interval for that many examples.
    fixed = metrics.share([1] * 20 + [0] * 20, range(40), strata=["a"] * 20 + ["b"] * 20)
    assert (fixed.low, fixed.high) == pytest.approx(proportion_confint(20, 40, method="wilson"))


def test_empty_input_is_refused():
    for function in (
        lambda: metrics.share([], []),
        lambda: metrics.mean_estimate([], [], bounds=(0, 1)),
        lambda: metrics.calibration([], []),
        lambda: metrics.brier([], []),
    ):
        with pytest.raises(ValueError, match="no "):
            function()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=40))
def test_share_interval_always_holds_its_value_and_does_not_depend_on_order(rows):
    values, clusters = zip(*rows, strict=True)
    found = metrics.share(values, clusters)
    assert 0 <= found.low <= found.value <= found.high <= 1
    again = metrics.share(values[::-1], clusters[::-1])
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high), abs=1e-9)


# ---- means and differences ----


def test_standard_error_of_clusters_of_one_size_is_that_of_a_regression_with_clustered_errors():
    rng = np.random.default_rng(3)
    clusters = rng.permutation(np.repeat(np.arange(25), 5))
    values = rng.normal(size=25)[clusters] + rng.normal(size=125)
    se, count = metrics.clustered_se((values - values.mean()) / 125, clusters)
    # statsmodels divides by n - 1 where this function divides by n.
    fit = OLS(values, np.ones(125)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert count == 25
    assert se == pytest.approx(float(fit.bse[0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_standard_error_of_clusters_of_unequal_size_is_that_of_a_jackknife(weighted: bool):
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(7), [40, 1, 2, 9, 1, 1, 5])
    values = rng.normal(size=7)[clusters] + rng.normal(size=len(clusters))
    weights = rng.uniform(0.5, 2, len(clusters)) if weighted else np.ones(len(clusters))
    mean = np.average(values, weights=weights)
    without = [np.average(values[clusters != g], weights=weights[clusters != g]) for g in range(7)]
    share = weights / weights.sum()
    se, _ = metrics.clustered_se(share * (values - mean), clusters, weights if weighted else None)
    assert se == pytest.approx(math.sqrt(6 / 7 * np.square(np.array(without) - mean).sum()))


@pytest.mark.parametrize("sizes", [[45] * 3 + [1] * 40, [100] + [1] * 20])
def test_intervals_cover_with_a_few_prompts_that_have_most_of_the_comparisons(sizes: list[int]):
    """Without the correction for a cluster's own weight, the coverage is 82% and 35%."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    covered = 0
    for _ in range(300):
        skill = rng.beta(0.75 * 4, 0.25 * 4, len(sizes))[clusters]  # correlation 0.2 within a prompt
        found = metrics.share((rng.random(len(clusters)) < skill).astype(float), clusters)
        covered += found.low <= 0.75 <= found.high
    assert covered / 300 >= 0.86


def test_mean_estimate_by_hand():
    # Prompts with sums of deviations -2, 0, 2 from the mean 3 over 6 values: V = 3/2 * (4 + 0 + 4) / 36 = 1/3.
    found = metrics.mean_estimate([2, 2, 3, 3, 4, 4], [0, 0, 1, 1, 2, 2], bounds=(-100, 100))
    assert found.value == 3
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 / 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_mean_of_one_prompt_is_bounded_by_what_is_possible():
    found = metrics.mean_estimate([0.2, 0.4], ["a", "a"], bounds=(-1, 1))
    assert (found.value, found.low, found.high) == (pytest.approx(0.3), -1, 1)


def test_two_models_that_never_differ_have_a_difference_of_zero_with_a_width():
    right = np.tile([1.0, 0.0], 50)
    found = metrics.paired_difference(right, right, range(100))
    z2 = stats.norm.ppf(0.975) ** 2
    assert (found.value, found.low, found.high) == pytest.approx((0, -z2 / (100 + z2), z2 / (100 + z2)))


def test_pairing_makes_differences_far_narrower_than_the_accuracies():
    rng = np.random.default_rng(0)
    easy = rng.random(300) < 0.7
    first = easy.astype(float)
    second = np.where(np.arange(300) % 20 == 0, 0.0, first)  # wrong on a few that the first gets right
    found = metrics.paired_difference(first, second, range(300))
    single = metrics.share(first, range(300))
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.low > 0
    assert found.high - found.low < (single.high - single.low) / 1.8


def test_paired_difference_intervals_cover_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        clusters = np.repeat(np.arange(50), rng.integers(1, 5, 50))
        hard = rng.normal(size=50)[clusters]
        first = (hard + rng.normal(size=clusters.size) < 0.9).astype(float)
        second = (hard + rng.normal(size=clusters.size) < 0.5).astype(float)
        truth = stats.norm.cdf(0.9 / math.sqrt(2)) - stats.norm.cdf(0.5 / math.sqrt(2))
        found = metrics.paired_difference(first, second, clusters)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.98


REGIMES = {  # standard deviations of runs, prompts and single values
    "runs": (0.3, 0.05, 0.1),
    "prompts": (0.0, 1.0, 0.3),
    "both": (0.1, 1.0, 0.5),
    "noise": (0.0, 0.0, 1.0),
    "mixed": (0.3, 1.0, 1.0),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("runs", [5, 8])
def test_intervals_over_runs_cover_new_runs_and_new_prompts(runs: int, regime: str) -> None:
    """The simulated coverage is at least 93%, up to the error of the simulation (1,500 draws, 0.6 points)."""
    run_sd, prompt_sd, noise_sd = REGIMES[regime]
    rng = np.random.default_rng(zlib.crc32(regime.encode()) + runs)
    covered = by_prompt_only = 0
    for _ in range(1500):
        values = 0.1 + run_sd * rng.normal(size=(runs, 1)) + prompt_sd * rng.normal(size=60)
        values = values + noise_sd * rng.normal(size=(runs, 60))
        found = metrics.over_runs(values, range(60))
        covered += found.low <= 0.1 <= found.high
        naive = metrics.mean_estimate(values.mean(axis=0), range(60), bounds=(-math.inf, math.inf))
        by_prompt_only += naive.low <= 0.1 <= naive.high
    assert covered / 1500 >= 0.93
    assert by_prompt_only <= covered
    if regime == "runs":
        assert by_prompt_only / 1500 < 0.5


def test_intervals_over_runs_of_correctness_cover_with_several_pairs_per_prompt() -> None:
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(60), 3)
    covered = 0
    for _ in range(600):
        skill, hard = rng.normal(0, 0.15, (5, 1)), rng.normal(size=60)[clusters]
        first = (0.8 + skill + hard + rng.normal(size=(5, 180)) > 0).astype(float)
        second = (0.4 + hard + rng.normal(size=(5, 180)) > 0).astype(float)
        truth = stats.norm.cdf(0.8 / math.sqrt(2 + 0.15**2)) - stats.norm.cdf(0.4 / math.sqrt(2))
        found = metrics.paired_difference(first, second, clusters)
        covered += found.low <= truth <= found.high
    assert covered / 600 >= 0.93


def test_fewer_than_five_runs_have_a_range_and_show_nothing() -> None:
    values = np.array([[0.2] * 40, [0.3] * 40, [0.4] * 20 + [0.6] * 20, [0.1] * 40])
    found = metrics.over_runs(values, range(40))
    assert (found.value, found.low, found.high) == pytest.approx((0.275, 0.1, 0.5))
    assert found.kind == "range of 4 runs"
    assert found.by_run == pytest.approx((0.2, 0.3, 0.5, 0.1))
    assert metrics.verdict(found) == "not shown"
    more = metrics.over_runs(np.vstack([values, values]), range(40))
    assert more.kind == "95% interval over 8 runs and 40 prompts"
    assert metrics.verdict(more) == "better"
    assert more.low < 0.275 < more.high
    assert set(more.to_dict()) == {"value", "low", "high", "n", "clusters", "by_run", "kind"}


def test_equal_runs_still_have_an_interval_of_positive_width() -> None:
    found = metrics.paired_difference(np.ones((5, 30)), np.zeros((5, 30)), range(30))
    assert (found.value, found.high) == (1.0, 1.0) and 0.8 < found.low < 1.0


def test_runs_need_the_same_prompts() -> None:
    for wrong in (np.zeros((1, 4)), np.zeros(4), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="several runs need"):
            metrics.over_runs(wrong, "abcd")


def test_a_verdict_follows_the_interval() -> None:
    def found(low: float, high: float) -> metrics.Estimate:
        return metrics.Estimate((low + high) / 2, low, high, 9, 9)

    assert [metrics.verdict(found(*ends)) for ends in ((0.01, 1), (-1, -0.01), (-1, 1), (0, 1), (-1, 0))] == [
        "better",
        "worse",
        "not shown",
        "not shown",
        "not shown",
    ]
    assert metrics.verdict(found(0.4, 0.6), 0.5) == "not shown"
    assert metrics.verdict(found(0.55, 0.6), 0.5) == "better"


def test_as_many_examples_as_needed_show_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(8)
    gain = 0.1

    def draw(n: int):
        hard = rng.normal(size=n // 2).repeat(2)
        first = (rng.random(n) < 0.6 + gain + 0.1 * np.sign(hard)).astype(float)
        return first, (rng.random(n) < 0.6 + 0.1 * np.sign(hard)).astype(float), np.arange(n // 2).repeat(2)

    count = metrics.needed(*draw(4000), difference=gain)
    assert count is not None
    shown = [metrics.verdict(metrics.paired_difference(*draw(count // 2 * 2))) == "better" for _ in range(300)]
    assert 0.73 <= np.mean(shown) <= 0.87
    assert metrics.needed([1, 0, 1], [1, 0, 1], "abc") is None
    assert metrics.needed([1, 0, 1], [1, 1, 1], "aaa") is None


def test_one_seed_is_the_same_as_no_seeds():
    first, second = [1, 0, 1, 1], [0, 0, 1, 0]
    plain = metrics.paired_difference(first, second, "abcd")
    assert metrics.paired_difference([first], [second], "abcd") == plain
    with pytest.raises(ValueError, match="equal shapes"):
        metrics.paired_difference(first, second[:3], "abcd")


# ---- probabilities ----


def test_brier_by_hand():
    # P(chosen) = 3/4, 1/2 and 1/4: squared errors 1/16, 1/4, 9/16.
    found = metrics.brier([math.log(3), 0.0, -math.log(3)], "abc")
    assert found.value == pytest.approx((1 / 16 + 1 / 4 + 9 / 16) / 3)


def test_correctness_counts_ties_half():
    assert metrics.correctness([2.0, 0.0, -0.1]).tolist() == [1.0, 0.5, 0.0]


def test_calibration_error_by_hand():
    # One bin (under 40 examples): always 75% sure, right in 3 of 5.
    margins = np.log(3) * np.array([1, 1, 1, -1, -1])
    found = metrics.calibration(margins, "abcde")
    assert len(found.bins) == 1
    assert found.bins[0].confidence == pytest.approx(0.75)
    assert found.bins[0].accuracy.value == pytest.approx(0.6)
    assert found.ece == pytest.approx(0.15)
    assert found.modesty.value == pytest.approx(-0.15)


def test_calibration_bins_hold_equal_numbers_and_average_their_gaps():
    # Two bins of 20: 60% sure and always right; 90% sure and right half the time.
    unsure, sure = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    margins = np.concatenate([np.full(20, unsure), np.tile([sure, -sure], 10)])
    found = metrics.calibration(margins, range(40))
    assert [row.accuracy.n for row in found.bins] == [20, 20]
    assert found.ece == pytest.approx((0.4 + 0.4) / 2)
    assert found.modesty.value == pytest.approx(0.0)


def test_a_calibrated_model_stays_within_chance_and_an_overconfident_one_does_not():
    rng = np.random.default_rng(1)
    within = 0
    for _ in range(40):
        margins = rng.normal(0, 1.5, 600)
        honest = np.where(rng.random(600) < 1 / (1 + np.exp(-np.abs(margins))), 1, -1) * np.abs(margins)
        clusters = np.arange(600) // 2
        found = metrics.calibration(honest, clusters, draws=300)
        within += found.ece <= found.by_chance
        boastful = metrics.calibration(3 * honest, clusters, draws=300)
        assert boastful.ece > boastful.by_chance
        assert boastful.modesty.high < 0
    assert within / 40 >= 0.8


def test_one_large_prompt_does_not_make_a_calibrated_model_look_miscalibrated():
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(43), [45] * 3 + [1] * 40)
    beyond = 0
    for _ in range(100):
        shared, own = rng.normal(size=(2, 175))
        margins = np.abs(rng.normal(0, 1.5, 175))
        latent = math.sqrt(0.2) * shared[clusters] + math.sqrt(0.8) * own
        right = stats.norm.cdf(latent) < 1 / (1 + np.exp(-margins))
        found = metrics.calibration(np.where(right, margins, -margins), clusters, draws=200)
        beyond += found.ece > found.by_chance
    assert beyond <= 12  # 5 in the mean


def test_chance_is_unknown_with_one_prompt_in_a_bin():
    found = metrics.calibration([1.0, -1.0], ["a", "a"])
    assert found.by_chance == math.inf and found.ece > 0


@given(st.permutations(range(60)))
def test_calibration_does_not_depend_on_the_order_even_with_equal_confidences(order):
    margins = np.repeat([-1.0, 0.0, 0.5, 2.0], 15) * np.tile([1, 1, -1], 20)
    clusters = np.arange(60) // 3
    one = metrics.calibration(margins, clusters, draws=50)
    other = metrics.calibration(margins[order], clusters[order], draws=50)
    assert other.ece == pytest.approx(one.ece)
    assert other.by_chance == pytest.approx(one.by_chance)
    assert [row.accuracy.n for row in other.bins] == [row.accuracy.n for row in one.bins]


def test_swapping_the_sides_of_every_comparison_keeps_confidence_and_turns_accuracy_around():
    margins = np.random.default_rng(2).normal(0.5, 1, 200)
    one, other = metrics.calibration(margins, range(200)), metrics.calibration(-margins, range(200))
    assert [row.confidence for row in one.bins] == [row.confidence for row in other.bins]
    assert one.bins[0].accuracy.value == pytest.approx(1 - other.bins[0].accuracy.value)


# ---- length ----


def test_correlation_is_pearsons_and_its_interval_covers():
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        clusters = np.repeat(np.arange(60), 3)
        shared = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 60)[clusters]
        own = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 180)
        x, y = (shared + own).T
        found = metrics.correlation(x, y, clusters)
        assert found is not None
        assert found.value == pytest.approx(stats.pearsonr(x, y)[0])
        covered += found.low <= 0.5 <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_correlation_where_it_is_not_defined_or_perfect():
    assert metrics.correlation([1, 1, 1], [1, 2, 3], "abc") is None
    assert metrics.correlation([1, 2], [1, 2], "ab") is None
    perfect = metrics.correlation([1, 2, 3], [2, 4, 6], "abc")
    assert perfect is not None and perfect.value == pytest.approx(1) and perfect.low == perfect.high


def test_length_correlation_tells_bias_within_prompts_from_differences_between_them():
    # Within each prompt the longer response gets less; prompts with long responses get more.
    rewards = [1.0, 0.5, 5.0, 4.5, 9.0, 8.5]
    lengths = [10, 20, 110, 120, 210, 220]
    found = metrics.length_correlation(rewards, lengths, list("aabbcc"))
    assert found.pearson is not None and found.pearson.value > 0.9
    assert found.within_pearson is not None and found.within_pearson.value == pytest.approx(-1)
    assert found.within_spearman is not None and found.within_spearman.value == pytest.approx(-1)
    assert found.spearman is not None and found.spearman.value == pytest.approx(stats.spearmanr(rewards, lengths)[0])


def test_length_correlation_of_single_responses_has_no_within_part():
    found = metrics.length_correlation([1.0, 2.0, 2.5], [3, 9, 4], list("abc"))
    assert found.pearson is not None
    assert found.within_pearson is None and found.within_spearman is None
    assert asdict(found)["within_pearson"] is None


def test_ranks_within_groups_average_ties():
    ranks = metrics.ranks_within(np.array([5.0, 1.0, 5.0, 2.0, 9.0]), np.array([0, 1, 0, 1, 0]))
    assert ranks.tolist() == [1.5, 1.0, 1.5, 2.0, 3.0]


# ---- balanced accuracy ----


def test_balanced_accuracy_counts_a_rare_truth_as_much_as_a_common_one():
    truth = ["bad"] * 2 + ["fine"] * 8
    said = ["bad", "fine"] + ["fine"] * 8
    found = metrics.balanced_accuracy(truth, said, range(10))
    assert found.value == pytest.approx(0.75)  # 1/2 and 1
    assert found.low < 0.75 < found.high and found.n == 10
    always = metrics.balanced_accuracy(truth, ["fine"] * 10, range(10))
    assert always.value == pytest.approx(0.5)
    assert metrics.balanced_accuracy(truth, [None] * 10, range(10)).value == 0.0
    with pytest.raises(ValueError, match="no observations"):
        metrics.balanced_accuracy([], [], [])


def test_balanced_accuracy_intervals_cover_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        truth = rng.random(150) < 0.2
        right = rng.random(150) < np.where(truth, 0.6, 0.9)
        found = metrics.balanced_accuracy(truth.tolist(), np.where(right, truth, ~truth).tolist(), range(150))
        held += found.low <= 0.75 <= found.high
    assert 0.91 <= held / 300 <= 0.98
