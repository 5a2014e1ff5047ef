"""Policies compared, with numbers that can be worked out by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rrm_lm.evaluation.policies.comparison import compare, judge_pairs, mean_over_prompts, share_over_prompts, versus
from rrm_lm.evaluation.policies.results import GOLD, PART, PairVerdict, PolicySamples, Sample
from rrm_lm.evaluation.statistics.metrics import mean_estimate, share
from rrm_lm.storage import json_text
from tests.unit.evaluation.policy_cases import asked, full_comparison, prompts, random_policy, sample, written


def two(reference, policy, **more):
    """A comparison of two policies with the given gold rewards for each prompt."""
    rows = [[[sample(gold, f"{name} says {gold}") for gold in row] for row in rows]
            for name, rows in (("a", reference), ("b", policy))]  # fmt: skip
    return compare(prompts(len(reference)), [written("start", rows[0]), written("new", rows[1])], **more)


def test_difference_and_wins_by_hand():
    found = two([[0.0, 1.0], [2.0, 2.0], [5.0, 5.0]], [[2.0, 2.0], [2.0, 4.0], [4.0, 5.0]])
    new = found.policies[0]
    assert new.rewards[GOLD].value == pytest.approx((2 + 3 + 4.5) / 3)
    # By prompt: 2 - 0.5, 3 - 2, 4.5 - 5.
    differences = [1.5, 1.0, -0.5]
    against = new.against[GOLD]
    assert against.difference.value == pytest.approx(2 / 3)
    half = stats.t.ppf(0.975, 2) * np.std(differences, ddof=1) / math.sqrt(3)
    assert against.difference.high == pytest.approx(2 / 3 + half)
    assert against.difference.low == pytest.approx(2 / 3 - half)
    assert (against.difference.n, against.difference.clusters) == (3, 3)
    # Pairs: 4 of 4 won; 2 ties and 2 wins; 2 losses and 2 ties.
    assert against.win_rate.value == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert (against.ties, against.pairs, against.win_rate.n) == (4, 12, 12)


def test_a_policy_against_itself_is_even():
    rows = [[1.0, 2.0], [3.0, 3.0]]
    against = two(rows, rows).policies[0].against[GOLD]
    assert against.difference.value == against.difference.low == against.difference.high == 0
    assert against.win_rate.value == 0.5


def test_the_interval_is_clustered_by_the_request_that_prompts_grew_out_of():
    """Two branches of one conversation are not two independent prompts."""
    same = [asked("question 0?"), (*asked("Question 0? "), *asked("what?")), asked("question 1?"), asked("question 2?")]
    rows = [written(name, [[sample(gold)] for gold in golds])
            for name, golds in (("a", [0.0, 0, 0, 0]), ("b", [1.0, 1, 2, 4]))]  # fmt: skip
    found = compare(same, rows).policies[0].against[GOLD].difference
    expected = mean_estimate([1, 1, 2, 4], ["x", "x", "y", "z"], bounds=(-math.inf, math.inf))
    assert (found.low, found.high, found.clusters) == (expected.low, expected.high, 3)


def test_pairing_takes_out_how_hard_prompts_are():
    count = 40
    found = compare(
        prompts(count), [random_policy("start", count), random_policy("new", count, better=0.3, seed=1)]
    ).policies[0]
    difference = found.against[GOLD].difference
    assert difference.low > 0
    assert difference.high - difference.low < (found.rewards[GOLD].high - found.rewards[GOLD].low) / 2


def test_every_prompt_counts_alike_however_many_samples_it_has():
    rows = [np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0])]
    labels = ["a", "b"]
    mean, part = mean_over_prompts(rows, labels), share_over_prompts(rows, labels)
    assert mean is not None and part is not None
    assert (mean.value, mean.n, part.value, part.n) == (0.5, 5, 0.5, 5)


def test_shares_have_the_interval_of_metrics():
    """One value a prompt: nothing is new then."""
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert share_over_prompts([np.array([v]) for v in values], list("abcdef")) == share(values, list("abcdef"))


# ---- what is missing ----


def test_samples_without_a_reward_are_left_out_and_counted():
    found = two([[1.0, math.nan], [2.0, 2.0], [3.0, 3.0]], [[2.0, 2.0], [math.nan, math.nan], [4.0, math.nan]])
    start, new = found.results
    assert (start.unscored, new.unscored) == ({GOLD: 1}, {GOLD: 3})
    assert start.rewards[GOLD].value == pytest.approx(2.0)
    assert new.rewards[GOLD].value == pytest.approx(3.0)
    assert (new.rewards[GOLD].n, new.rewards[GOLD].clusters) == (3, 2)
    against = new.against[GOLD]
    assert (against.difference.value, against.difference.clusters, against.pairs) == (1.0, 2, 4)


def test_infinite_rewards_are_none():
    found = two([[1.0]] * 3, [[2.0], [math.inf], [-math.inf]])
    assert found.policies[0].unscored == {GOLD: 2}
    assert found.policies[0].rewards[GOLD].value == 2.0


def test_a_policy_without_any_reward_is_not_compared():
    found = two([[1.0], [2.0]], [[math.nan], [math.nan]]).policies[0]
    assert (found.rewards, found.against, found.best_of_n) == ({}, {}, None)
    assert versus([np.array([math.nan])], [np.array([1.0])], ["a"]) is None


def test_differences_that_only_rounding_tells_apart_have_no_width():
    found = versus([np.array([v]) for v in (0.3, 0.5, 0.9)], [np.array([v]) for v in (0.1, 0.3, 0.7)], list("abc"))
    assert found is not None
    assert found.difference.low == found.difference.value == found.difference.high == pytest.approx(0.2)


def test_one_prompt_has_no_interval():
    difference = two([[1.0, 2.0]], [[3.0, 3.0]]).policies[0].against[GOLD].difference
    assert (difference.value, difference.low, difference.high) == (1.5, -math.inf, math.inf)


def test_what_makes_no_sense_is_refused():
    one = written("a", [[sample(1.0)]])
    for policies, asked_for, message in (
        ([one, one], 1, "share a name"),
        ([one], 2, "at least one sample for each of the 2 prompts"),
        ([written("a", [[]])], 1, "at least one sample"),
        ([], 1, "at least one prompt and one policy"),
        ([one], 0, "at least one prompt and one policy"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(prompts(asked_for), policies)


# ---- measures, distance, best of n ----


@pytest.mark.parametrize(
    ("names", "proxy", "main"),
    [
        (["gold", "proxy", "other"], "proxy", "gold"),
        (["proxy", "other"], "proxy", "other"),
        (["proxy"], "proxy", None),
        (["proxy"], None, "proxy"),
        ([], None, None),
    ],
)
def test_the_main_measure_is_gold_or_independent(names, proxy, main):
    rewards: dict[str, Any] = dict.fromkeys(names, 1.0)
    gold = rewards.pop("gold", math.nan)
    one, other = (written(name, [[sample(gold, **rewards)]] * 2) for name in "ab")
    found = compare(prompts(2), [one, other], proxy=proxy)
    assert (found.main, set(found.measures)) == (main, set(names))
    if len(names) > 1:
        assert found.measures[0] == main


def test_kl_is_the_mean_log_ratio():
    rows = [[sample(1.0, log_ratio=2.0), sample(1.0, log_ratio=4.0)], [sample(1.0, log_ratio=-1.0)] * 2]
    found = compare(prompts(2), [written("start", [[sample(0.0)]] * 2), written("new", rows)])
    kl = found.policies[0].kl
    assert kl is not None and kl.value == pytest.approx((3 - 1) / 2) and (kl.n, kl.clusters) == (4, 2)
    assert found.reference.kl is None
    assert compare(prompts(1), [written(n, [[sample(1.0)]]) for n in "ab"]).policies[0].kl is None


def test_the_best_of_n_is_chosen_by_the_proxy_and_worth_the_main_measure():
    rows = [[sample(1.0, proxy=0.0), sample(5.0, proxy=1.0)], [sample(3.0, proxy=2.0), sample(9.0, proxy=1.0)]]
    (found,) = compare(prompts(2), [written("start", rows)], proxy="proxy").results
    assert found.best_of_n is not None
    assert [e.value for e in found.best_of_n.gold] == pytest.approx([(3 + 6) / 2, (5 + 3) / 2])
    assert compare(prompts(2), [written("start", rows)]).results[0].best_of_n is None


def test_prompts_with_a_missing_reward_are_no_part_of_the_best_of_n():
    rows = [[sample(1.0, proxy=0.0), sample(5.0, proxy=math.nan)], [sample(3.0, proxy=2.0), sample(9.0, proxy=1.0)]]
    (found,) = compare(prompts(2), [written("start", rows)], proxy="proxy").results
    assert found.best_of_n is not None and found.best_of_n.gold[1].value == 3.0
    assert found.best_of_n.gold[1].clusters == 1


# ---- texts ----


def test_length_endings_and_repetition():
    start = [[sample(0.0, "a b c d e", tokens=10, finished=False)], [sample(0.0, "f g h i j", tokens=20)]]
    new = [[sample(0.0, "yes " * 8, tokens=16)], [sample(0.0, "yes yes yes yes", tokens=30)]]
    found = compare(prompts(2), [written("start", start), written("new", new)])
    before: Any = found.reference.drift
    after: Any = found.policies[0].drift
    assert before["tokens"].level.value == 15 and before["tokens"].change is None
    assert after["tokens"].level.value == 23 and after["tokens"].change.value == pytest.approx((6 + 10) / 2)
    assert (before["finished"].level.value, after["finished"].level.value) == (0.5, 1.0)
    assert after["finished"].change.value == 0.5 and after["finished"].level.high == 1.0
    assert after["repeated"].level.value == pytest.approx((4 / 5 + 0) / 2)
    assert after["distinct"].level.value == pytest.approx((1 / 7 + 1 / 3) / 2)
    assert (before["stock"].level.value, after["stock"].level.value) == (0.0, 1.0)


def test_texts_too_short_for_a_share_are_left_out():
    found = compare(prompts(2), [written("start", [[sample(0.0, "no")], [sample(0.0, "a b c d")]])]).reference
    assert found.drift["repeated"].level.n == 1
    alone = compare(prompts(1), [written("start", [[sample(0.0, "no")]])]).reference
    assert "repeated" not in alone.drift and alone.drift["tokens"].level.value == 2


# ---- judges ----


def test_verdicts_in_both_orders():
    verdicts = [
        PairVerdict(0, 0.9, 0.7),  # wins in both
        PairVerdict(1, 0.9, 0.3),  # whichever stands first
        PairVerdict(2, 0.2, 0.1),  # loses in both
        PairVerdict(3, 0.5, 0.6),  # cannot tell, then wins
        PairVerdict(4, None, 0.9),
        PairVerdict(5, None, None),
    ]
    found = judge_pairs(verdicts, list("abcdef"))
    assert found.win_rate is not None and found.first_shown is not None
    assert found.win_rate.value == pytest.approx((1 + 0.5 + 0 + 0.75) / 4)
    assert found.first_shown.value == pytest.approx((0.5 + 1 + 0.5 + 0.25) / 4)
    assert (found.pairs, found.abstained, found.inconsistent) == (6, 2, 2)
    assert found.win_rate.n == 4


def test_an_abstention_is_never_a_zero():
    found = judge_pairs([PairVerdict(0, None, None)] * 3, ["a"])
    assert (found.win_rate, found.first_shown, found.abstained) == (None, None, 3)


def test_results_are_json():
    found = json.loads(json_text(full_comparison(policies=2).to_dict()))
    assert list(found["policies"]) == ["start", "outputs/p1", "outputs/p2"]
    policy = found["policies"]["outputs/p2"]
    assert policy["against_reference"]["gold"]["difference"]["clusters"] == 24
    assert policy["kl"]["value"] == pytest.approx(4.0, abs=0.5)
    assert policy["judged"]["some judge"]["abstained"] == 1
    assert policy["best_of_n"]["n"] == [1, 2, 3, 4]
    assert policy["drift"]["tokens"]["change"]["n"] == 24
    assert found["policies"]["start"]["against_reference"] == {}


# ---- parts of gold, trivial policies, and policies against each other ----


def with_parts(name, golds, answers, *, trivial=False):
    """A policy with one sample for each prompt, whose gold has a part `answer`."""
    rows = [
        (Sample("text", 2, finished=True, rewards={GOLD: gold, f"{PART}answer": part}),)
        for gold, part in zip(golds, answers, strict=True)
    ]
    return PolicySamples(name, tuple(rows), trivial=trivial)


def test_parts_of_gold_are_no_measures_of_their_own():
    found = compare(
        prompts(2), [with_parts("start", [0.4, 0.6], [0.0, 1.0]), with_parts("new", [0.7, 0.7], [0.0, 0.5])]
    )
    assert (found.measures, found.main) == ((GOLD,), GOLD) and list(found.policies[0].rewards) == [GOLD]
    part = found.policies[0].parts["answer"]
    assert part.level.value == 0.25 and part.change is not None and part.change.value == -0.25
    assert found.reference.parts["answer"].change is None


def test_each_policy_is_compared_with_those_before_it_and_with_trivial_ones():
    rows = [
        with_parts(name, golds, [0.0] * 3, trivial=name == "always")
        for name, golds in (
            ("start", [0.0, 0, 0]),
            ("sft", [1.0, 2, 3]),
            ("ppo", [2.0, 4, 3]),
            ("always", [3.0, 3, 3]),
        )
    ]
    found = compare(prompts(3), rows)
    assert [result.name for result in found.policies] == ["sft", "ppo"]
    assert [result.name for result in found.trivial] == ["always"]
    sft, ppo = found.policies
    assert list(sft.minus) == ["always"] and list(ppo.minus) == ["sft", "always"]
    expected = mean_estimate([1.0, 2.0, 0.0], range(3), bounds=(-math.inf, math.inf))
    assert (ppo.minus["sft"].value, ppo.minus["sft"].low) == (expected.value, expected.low)
    assert found.reference.minus == {} == found.trivial[0].minus
    assert found.to_dict()["policies"]["always"]["trivial"] is True  # type: ignore[index]
