"""The curves of over-optimisation, their peaks and verdicts, on data made from known curves."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from rrm_lm.evaluation.policies.best_of_n import best_of_n
from rrm_lm.evaluation.policies.monitors import (
    Track,
    best_of_n_track,
    fall_of,
    fit_curve,
    over_optimisation,
    points_of,
    track_of,
    watch,
)
from rrm_lm.storage import json_text
from rrm_lm.training.over_optimisation import Measurement
from tests.unit.evaluation.policy_cases import measurements

DISTANCES = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]


def rl(d, start=0.3, alpha=1.0, beta=0.6):
    return start + d * (alpha - beta * math.log(d)) if d else start


def bon(d, start=0.3, alpha=1.0, beta=0.25):
    return start + d * (alpha - beta * d)


def exact_track(kind, curve, distances=DISTANCES, prompts=6):
    """Gold rewards that lie on the curve on average, and differ by prompt."""
    d = np.array(distances)
    hard = np.linspace(-1, 1, prompts)[:, None]
    gold = np.array([curve(x) for x in distances]) + hard
    kl = np.broadcast_to(d**2, gold.shape)
    return Track(kind, tuple(range(len(d))), kl, gold * 2, gold, tuple(map(str, range(prompts))))


def steps(distances):
    return [(10 * i, d) for i, d in enumerate(distances)]


@pytest.mark.parametrize(
    ("kind", "curve", "beta", "peak", "top"),
    [
        # R0 + d (a - b ln d) is highest at exp(a / b - 1), by b times that.
        ("rl", rl, 0.6, math.exp(1 / 0.6 - 1), 0.3 + 0.6 * math.exp(1 / 0.6 - 1)),
        # R0 + d (a - b d) at a / 2b, by a^2 / 4b.
        ("best_of_n", bon, 0.25, 2.0, 0.3 + 1.0),
    ],
)
def test_a_known_curve_is_found_again(kind, curve, beta, peak, top):
    fit = fit_curve(exact_track(kind, curve))
    assert fit is not None
    assert (fit.start.value, fit.alpha.value, fit.beta.value) == pytest.approx((0.3, 1.0, beta))
    assert (fit.peak.value, fit.peak_reward.value) == pytest.approx((peak, top))
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.at([0.0, 1.7]) == pytest.approx([0.3, curve(1.7)])
    # The slope is the curve's own, and the peak is where it is highest.
    assert fit.slope.value == pytest.approx((curve(4.0005) - curve(3.9995)) / 0.001, rel=1e-4)
    grid = np.linspace(0.01, 8, 4000)
    assert grid[np.argmax(fit.at(grid))] == pytest.approx(peak, abs=0.01)
    # All prompts have the same shape, so only the height is uncertain.
    assert fit.peak.high - fit.peak.low < 1e-6
    assert fit.start.low < 0.3 < fit.start.high


@pytest.mark.parametrize("kind", ["rl", "best_of_n"])
def test_a_curve_that_only_rises_has_no_peak(kind):
    fit = fit_curve(exact_track(kind, lambda d: 0.1 + 0.5 * d + 0.1 * d * d))
    assert fit is not None
    assert fit.peak.value == math.inf and fit.peak_reward.value == math.inf
    assert json.loads(json_text(asdict(fit)))["peak"]["value"] is None


def test_a_best_of_n_curve_that_only_falls_has_its_peak_at_the_start():
    fit = fit_curve(exact_track("best_of_n", lambda d: 1 - 0.5 * d - 0.1 * d * d))
    assert fit is not None and fit.peak.value == 0 and fit.peak_reward.value == pytest.approx(1.0)


@pytest.mark.parametrize("distances", [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0, 2.0], [0.0] * 6, [1.0]])
def test_too_few_points_are_not_fitted(distances):
    found = over_optimisation(exact_track("rl", rl, distances))
    assert (found.fit, found.state) == (None, "not enough points")
    assert len(found.points) == len(distances)


@pytest.mark.parametrize(
    ("distances", "state"),
    [([0.0, 0.3, 0.6, 0.9, 1.2, 1.4], "rising"), ([0.0, 0.7, 1.4, 2.2, 3.0, 4.0, 5.0], "past the peak")],
)
def test_verdicts_by_the_slope_at_the_last_point(distances, state):
    found = over_optimisation(track_of(measurements(rl, steps(distances), count=30)))
    assert found.state == state
    assert found.fit is not None and found.fit.peak.low < math.exp(1 / 0.6 - 1) < found.fit.peak.high


def test_noise_gives_no_verdict():
    found = over_optimisation(track_of(measurements(lambda d: 0.0, steps(DISTANCES), noise=2.0)))
    assert found.state == "unclear" and found.fall is not None and not found.fall.fallen


def test_intervals_of_the_peak_hold_it_about_as_often_as_they_say():
    truth, held = math.exp(1 / 0.6 - 1), 0
    for seed in range(60):
        fit = fit_curve(track_of(measurements(rl, steps(DISTANCES), noise=0.5, seed=seed)), draws=300)
        assert fit is not None
        held += fit.peak.low <= truth <= fit.peak.high
    assert 52 <= held <= 60


def test_points_have_intervals_over_prompts():
    track = track_of(measurements(rl, [(0, 0.0), (10, 2.0)], count=12))
    first, second = points_of(track)
    assert first.distance == 0 and first.kl is not None and first.kl.value == 0
    assert second.distance == pytest.approx(2.0, abs=0.05) and second.step == 10
    assert second.proxy is not None and second.proxy.low < 4.0 + track.proxy[:, 0].mean() < second.proxy.high
    assert second.gold is not None and second.gold.clusters == 12


def test_a_divergence_below_zero_is_noise():
    track = track_of(measurements(rl, [(0, 0.0)]))
    negative = Track("rl", (0,), track.kl - 0.1, track.proxy, track.gold, track.clusters)
    assert points_of(negative)[0].distance == 0


def test_samples_of_a_prompt_are_averaged_and_missing_rewards_left_out():
    (one,) = measurements(lambda d: 0.0, [(0, 0.0)], count=3, noise=0.0)
    first = one.samples[0]
    twins = [
        type(first)(**{**{name: getattr(first, name) for name in first.__slots__}, "gold": gold})
        for gold in (1.0, 4.0, math.nan)
    ]
    track = track_of([Measurement(0, (*twins, *one.samples[1:]))])
    assert track.gold[0, 0] == 2.5
    assert track.gold.shape == (3, 1)
    nothing = track_of([Measurement(0, (twins[2], *one.samples[1:]))])
    point = points_of(nothing)[0]
    assert math.isnan(nothing.gold[0, 0]) and point.gold is not None and point.gold.clusters == 2


def test_a_step_without_any_gold_reward_is_no_part_of_the_fit():
    track = exact_track("rl", rl)
    gold = track.gold.copy()
    gold[:, 3] = math.nan
    fit = fit_curve(Track("rl", track.steps, track.kl, track.proxy, gold, track.clusters))
    assert fit is not None and fit.alpha.value == pytest.approx(1.0) and fit.alpha.n == len(DISTANCES) - 1
    gone = np.full_like(gold, math.nan)
    nothing = over_optimisation(Track("rl", track.steps, track.kl, track.proxy, gone, track.clusters))
    assert (nothing.fit, nothing.fall, nothing.state) == (None, None, "not enough points")


def test_other_prompts_are_refused():
    one, other = measurements(rl, [(0, 0.0)], count=3) + measurements(rl, [(10, 1.0)], count=4)
    with pytest.raises(ValueError, match="steps 0 and 10 were measured on different prompts"):
        track_of([one, other])
    with pytest.raises(ValueError, match="no measurement"):
        track_of([])


# ---- best of n ----


def test_the_best_of_n_is_fitted_at_its_exact_distances():
    random = np.random.default_rng(0)
    gold = random.normal(size=(80, 16))
    curve = best_of_n(gold + random.normal(size=gold.shape), gold, [str(i) for i in range(80)])
    track = best_of_n_track(curve, ("truth", "model"))
    assert track.kind == "best_of_n" and track.steps == tuple(range(1, 17))
    assert [point.distance for point in points_of(track)] == pytest.approx(np.sqrt(curve.kl))
    found = over_optimisation(track)
    assert found.state == "rising" and found.names == ("truth", "model")
    assert found.fit is not None and found.fit.kind == "best_of_n" and found.fit.r_squared > 0.95


def test_a_proxy_that_is_gamed_has_a_falling_best_of_n():
    """One sample in ten has the highest proxy reward and is worth nothing."""
    random = np.random.default_rng(1)
    gold = random.normal(size=(200, 32)) + 1
    proxy = gold.copy()
    gamed = random.random(gold.shape) < 0.1
    proxy[gamed], gold[gamed] = 9.0 + random.random(int(gamed.sum())), -3.0
    found = over_optimisation(best_of_n_track(best_of_n(proxy, gold, [str(i) for i in range(200)])))
    assert found.state == "past the peak"
    assert found.fall is not None and found.fall.fallen


# ---- the stop rule ----


def test_a_fall_is_paired_by_prompt_and_widened_for_all_points_and_looks():
    from scipy import stats

    gold = np.array([[0.0, 2.0, 1.0, 0.5], [1.0, 3.0, 0.0, 1.5], [5.0, 6.0, 5.5, 5.5]])
    track = Track("rl", (0, 10, 20, 30), np.zeros_like(gold), gold, gold, ("a", "b", "c"))
    fall = fall_of(track)
    assert fall is not None and fall.best_step == 10
    differences = np.array([-1.5, -1.5, -0.5])
    tail = 0.025 / (3 * 3 * 4)  # the third look, at three points
    half = stats.t.ppf(1 - tail, 2) * differences.std(ddof=1) / math.sqrt(3)
    assert fall.difference.value == pytest.approx(differences.mean())
    assert fall.difference.high == pytest.approx(differences.mean() + half)
    assert not fall.fallen


def test_the_first_point_has_fallen_from_nothing():
    assert fall_of(track_of(measurements(rl, [(0, 0.0)]))) is None


def test_one_prompt_never_stops_a_run():
    reading = watch(measurements(lambda d: -d, steps(DISTANCES), count=1))
    assert reading.stop == ""


def test_a_clear_fall_stops_and_says_why():
    found = measurements(lambda d: 1 - (d - 1) ** 2, steps([0.0, 0.5, 1.0, 2.0]), count=20)
    assert watch(found[:3]).stop == ""
    reading = watch(found)
    assert reading.stop.startswith("gold reward is 1.0") and "below that of step 20" in reading.stop
    assert "20 prompts" in reading.stop
    assert reading.numbers["kl"] == pytest.approx(4.0, abs=0.1) and set(reading.numbers) >= {"proxy", "gold"}


def test_noise_alone_seldom_stops_a_run():
    """Ten looks at a policy that does not change. With plain intervals, 14 of these 40 runs would be stopped; with a
    correction for the best point alone, 5.
    """
    stopped = 0
    for seed in range(40):
        found = measurements(lambda d: 0.0, steps([0.1 * i for i in range(10)]), noise=1.0, seed=seed)
        falls = [fall_of(track_of(found[:count])) for count in range(2, 11)]
        stopped += any(fall is not None and fall.fallen for fall in falls)
    assert stopped <= 1


def test_readings_say_where_the_peak_is():
    reading = watch(measurements(rl, steps(DISTANCES), count=30))
    assert "gold reward past the peak (peak at KL 3." in reading.sentence
    assert reading.numbers["peak_kl"] == pytest.approx(math.exp(2 / 0.6 - 2), rel=0.1)
    assert watch(measurements(rl, [(0, 0.0)])).sentence.endswith("not enough points")


def test_results_are_json():
    found = json.loads(json_text(over_optimisation(track_of(measurements(rl, steps(DISTANCES)))).to_dict()))
    assert found["n_points"] == 9 and found["n_prompts"] == 20 and found["names"] == ["gold", "proxy"]
    assert found["fit"]["peak"]["low"] < found["fit"]["peak"]["high"]
    assert found["points"][4]["sqrt_kl"] == pytest.approx(2.0, abs=0.05)
    assert found["fall"]["best_step"] in (30, 40, 50)
