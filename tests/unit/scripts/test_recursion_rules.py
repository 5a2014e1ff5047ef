"""The recursion experiment: the rules of the verdict, intervals over seeds, and controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rrm_lm.recursion.assistance import HelperNotes
from tests.smoke.commands import load_bench
from tests.unit.recursion.test_assistance import PROMPT, Fake, right
from tests.unit.recursion.toy import Letters

RULES, CONTROLS = load_bench("recursion_rules"), load_bench("recursion_controls")
SUMMARY = load_bench("recursion_summary")
Findings, Interval = RULES.Findings, RULES.Interval
conclude, over_seeds, share = RULES.conclude, RULES.over_seeds, RULES.share
DOMAIN = Letters()
RESULTS = Path(__file__).parents[3] / "scripts" / "bench" / "results"
GOOD = Findings(
    gain=Interval(0.10, 0.05, 0.15),
    room=Interval(0.16, 0.1, 0.2),
    over_cost=Interval(0.04, 0.01, 0.08),
    sham=Interval(-0.02, -0.05, 0.02),
    over_sham=Interval(0.12, 0.06, 0.17),
    best_gain=Interval(0.9, 0.5, 1.3),
    policy_gain=Interval(0.5, 0.1, 0.9),
    curve=(0.3, 1.1, 1.9),
    helpers={"heat": Interval(0.8, 0.71, 0.9), "security": Interval(0.9, 0.8, 1.0)},
)


def test_it_helped_if_no_rule_is_broken() -> None:
    assert conclude(GOOD).verdict == "helped" and conclude(GOOD).text == "helped"
    assert conclude(replace(GOOD, policy_gain=None)).verdict == "helped"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gain": Interval(0.10, -0.01, 0.2)}, "includes 0"),
        ({"over_cost": Interval(0.04, -0.01, 0.1)}, "costs the same"),
        ({"over_sham": Interval(0.03, -0.01, 0.07)}, "Sh"),
        ({"over_sham": None}, "was not run"),
        ({"sham": Interval(0.03, 0.01, 0.05)}, "better than no notes"),
        ({"helpers": {"heat": Interval(0.8, 0.69, 0.9)}}, "helper heat is not above .7"),
        ({"best_gain": Interval(-0.1, -0.2, 0.1)}, "best-of-16 gold does not"),
        ({"policy_gain": Interval(0.0, -0.2, 0.1)}, "policy's gold does not"),
        ({"curve": (0.3, 1.2, 1.1)}, "falls as n grows"),
    ],
)
def test_each_broken_rule_alone_gives_not_shown_to_help(change: dict, reason: str) -> None:
    found = conclude(replace(GOOD, **change))
    assert found.verdict == "not shown to help" and len(found.reasons) == 1 and reason in found.text


def test_all_broken_rules_are_named() -> None:
    found = conclude(replace(GOOD, curve=(2, 1, 0), gain=Interval(-0.1, -0.2, 0.1)))
    assert len(found.reasons) == 2


def test_three_seeds_have_the_t_interval_of_two_degrees_of_freedom() -> None:
    found = over_seeds([0.13, 0.07, 0.0534])
    assert found.value == pytest.approx(0.0845, abs=1e-4)
    assert (found.low, found.high) == (pytest.approx(-0.0156, abs=1e-4), pytest.approx(0.1846, abs=1e-4))
    assert over_seeds([0.13]).low == -float("inf")


def test_the_committed_experiment_is_not_shown_to_help() -> None:
    """Its t interval over three seeds holds 0; a bootstrap over them, which covers 75%, did not."""
    found = json.loads((RESULTS / "recursion_first.json").read_text(encoding="utf-8"))
    arms = found["arms"]
    gain = over_seeds(np.subtract(arms["A"]["reward_accuracy_by_seed"], arms["U"]["reward_accuracy_by_seed"]).tolist())
    assert gain.low < 0 and gain.to_dict() == found["over_seeds"]["A - U"]["reward_accuracy"]
    assert found["verdict"] == "not shown to help" and "the interval of A - U includes 0" in found["reasons"]


def test_the_page_has_the_verdict_of_the_results() -> None:
    found = json.loads((RESULTS / "recursion.json").read_text(encoding="utf-8"))
    again = SUMMARY.results(found["by_seed"], found["trivial"])
    assert {key: found[key] for key in again} == again  # everything follows from what was measured
    assert f"Computed verdict: {found['verdict']}." in (RESULTS / "recursion.html").read_text(encoding="utf-8")


def test_with_little_to_gain_it_is_not_testable() -> None:
    assert conclude(replace(GOOD, room=Interval(0.029, 0.0, 0.05))).verdict == "not testable"


def test_the_ratio_of_two_paired_means_has_the_interval_of_fieller() -> None:
    rng, held, several = np.random.default_rng(0), 0, 400
    for _ in range(several):
        room = 0.1 + 0.02 * rng.normal(size=6)
        found = share(0.5 * room + 0.02 * rng.normal(size=6), room)
        held += found is not None and found.low <= 0.5 <= found.high
    assert 0.92 < held / several < 0.98
    assert share([0.1, 0.2, 0.1], [-0.1, 0.2, 0.1]) is None  # nothing to gain: any share is possible
    assert share([0.1], [0.2]) is None


def arm(accuracy: float, **more: float) -> dict:
    gold = {f"best_of_{n}": accuracy * n for n in (1, 4, 16)}
    cost = {"checks": 0, "comparisons": 8, "seconds": 1.0, "commit": "", "pairs": "one"}
    return {"label_accuracy": 0.7, "reward_accuracy": accuracy, "near_accuracy": accuracy, **gold, **cost, **more}


def seed(assisted: float, **more: dict) -> dict:
    return {"arms": {"U": arm(0.6), "A": arm(assisted), "C": arm(0.61), "G": arm(0.7), **more}, "helpers": {}}


def test_a_seed_counts_when_all_of_its_arms_are_done() -> None:
    part = {"arms": {"U": arm(0.1), "A": arm(0.9)}, "helpers": {}}
    found = SUMMARY.results({"1": seed(0.65), "2": seed(0.67), "3": part}, {"random": 0.1})
    assert found["seeds"] == [1, 2] and found["by_seed"]["3"] == part
    assert found["differences"]["A - U"]["reward_accuracy"]["value"] == pytest.approx(0.06)
    assert found["arms"]["A"]["reward_accuracy_by_seed"] == [0.65, 0.67]
    assert found["pgr_reward_accuracy"]["value"] == pytest.approx(0.6) and found["pgr_policy"] is None


def test_seeds_that_agree_on_the_same_questions_do_not_hide_how_few_questions_decide() -> None:
    """300 questions of which 20 decide: the interval over seeds alone has no width."""
    right = {"U": 180, "A": 200, "C": 180, "G": 220}
    every = {name: arm(n / 300) | {SUMMARY.FAR: "2" * n + "0" * (300 - n)} for name, n in right.items()}
    found = SUMMARY.results({str(number): seed(0.0, **every) for number in range(1, 9)}, {})
    gain = found["differences"]["A - U"]["reward_accuracy"]
    error = (20 / 300 * (1 - 20 / 300) / 300) ** 0.5
    assert gain["value"] == pytest.approx(20 / 300) and gain["high"] - gain["low"] > 3.8 * error
    few = SUMMARY.results({str(number): seed(0.0, **every) for number in range(1, 4)}, {})
    assert few["differences"]["A - U"]["reward_accuracy"]["low"] == pytest.approx(20 / 300)


def test_policies_count_when_all_of_a_seed_are_done() -> None:
    gold = {"policy_gold": 1.0, "policy_unreadable": 0.0, "policy_seconds": 1.0, "policy_tokens": 9}
    every = {name: arm(0.7, **gold) for name in "UACG"}
    found = SUMMARY.results({"1": seed(0.65, **every), "2": seed(0.67, A=arm(0.67, **gold))}, {})
    assert found["policy_seeds"] == [1] and found["arms"]["A"]["policy_by_seed"] == [1.0]


def test_arms_of_one_seed_have_the_same_pairs() -> None:
    other = {"arms": {"Sh": arm(0.6) | {"pairs": "other"}}, "helpers": {}}
    assert set(SUMMARY._together({"1": seed(0.6)}, {"2": other})) == {"1", "2"}
    with pytest.raises(SystemExit, match="different pairs"):
        SUMMARY._together({"1": seed(0.6)}, {"1": other})


# -- controls ---------------------------------------------------------------------------------------------------------


def test_measured_notes_are_true_and_only_on_measured_responses() -> None:
    paid = CONTROLS.MeasuredNotes(DOMAIN, frozenset({(PROMPT, "blue sea")}))
    assert {(note.helper, note.verdict) for note in paid.notes(PROMPT, "blue sea")} == {
        ("letter_s", "yes"), ("letter_b", "yes"),
    }  # fmt: skip
    assert paid.notes(PROMPT, "moon") == () and paid.account() == {"checks": 2}


def test_a_sham_gives_every_response_the_notes_on_another() -> None:
    notes = HelperNotes([Fake(right)])
    subjects = [(prompt, f"{word} {n}") for prompt in DOMAIN.prompts for n, word in enumerate(("sea", "moon", "blue"))]
    sham = CONTROLS.ShamNotes(notes, subjects)
    sham.prepare(subjects)
    quotes = [sham.notes(*subject)[0].quote for subject in subjects]
    assert all(quote not in subject[1] for quote, subject in zip(quotes, subjects, strict=True))
    assert sorted(quotes) == sorted(notes.notes(*subject)[0].quote for subject in subjects)


def test_trivial_responses_are_ordered_by_what_they_know() -> None:
    found = CONTROLS.trivial_gold(DOMAIN, DOMAIN.prompts * 2, designs=50)
    assert found["random"] < found["constant"] <= found["constant_by_prompt"]
