"""Agreement between people, against the package krippendorff and by hand; a careless person stands out."""

from __future__ import annotations

import math
import random

import krippendorff
import pytest

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.statistics.agreement import agreement, alpha, kappa, log_odds, reliabilities
from rrm_lm.evaluation.statistics.metrics import share as share_of


def answers(rng: random.Random, flips: dict[str, float], n: int = 60) -> dict[str, dict[str, str]]:
    """The verdicts of people who flip a true preference with some probability."""
    truth = [rng.choice(["first", "second"]) for _ in range(n)]
    other = {"first": "second", "second": "first"}
    return {
        str(item): {who: other[true] if rng.random() < flip else true for who, flip in flips.items()}
        for item, true in enumerate(truth)
    }


def test_alpha_is_krippendorffs() -> None:
    rng = random.Random(1)
    for _ in range(20):
        units = [[rng.choice("abc") if rng.random() < 0.7 else "" for _ in range(4)] for _ in range(12)]
        table = [
            [float("nan") if not value else float(ord(value)) for value in person]
            for person in zip(*units, strict=True)
        ]
        expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
        assert alpha([[value for value in unit if value] for unit in units]) == pytest.approx(expected)


def test_alpha_without_anything_to_compare() -> None:
    assert alpha([]) is None and alpha([["a"], ["b"]]) is None and alpha([["a", "a"]]) is None


def test_kappa() -> None:
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert kappa(pairs) == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert kappa([]) is None and kappa([("a", "a")]) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_careless_person_in_three_stands_out(seed: int) -> None:
    found = agreement(answers(random.Random(seed), {"anna": 0.02, "ben": 0.3, "carl": 0.02}))
    people = found["people"]
    assert min(people, key=lambda who: people[who]["value"]) == "ben"
    assert found["n"] == 60 and people["ben"]["n"] == 120 and people["ben"]["low"] < people["ben"]["value"]
    assert max(found["pairs"], key=lambda pair: pair["kappa"])["people"] == ("anna", "carl")


def test_intervals_count_things_and_not_pairs_of_people() -> None:
    """One wrong answer differs from those of both others."""
    verdicts = {
        str(thing): {"anna": "first", "ben": "second" if thing < 10 else "first", "carl": "first"}
        for thing in range(50)
    }
    ben = agreement(verdicts)["people"]["ben"]
    assert (ben["n"], ben["value"]) == (100, 0.8)
    wilson = share_of([thing >= 10 for thing in range(50)], [str(thing) for thing in range(50)])
    assert (ben["low"], ben["high"]) == pytest.approx((wilson.low, wilson.high))


def test_one_person_agrees_with_nobody() -> None:
    assert agreement({"x": {"anna": "first"}}) == {"alpha": None, "n": 0, "pairs": [], "people": {}}


def test_reliabilities_find_how_often_each_person_is_right() -> None:
    wrong = {"anna": 0.05, "ben": 0.1, "carl": 0.3, "emil": 0.2}
    verdicts = answers(random.Random(0), wrong, n=400) | {"alone": {"dora": "first"}}  # nobody else judged it
    found = reliabilities(verdicts)
    for person, share in wrong.items():
        assert found[person] == pytest.approx(1 - share, abs=0.05), person
    assert sorted(found.values())[2] == found["dora"]
    assert 1 / (1 + math.exp(-log_odds(found["carl"]))) == pytest.approx(found["carl"])


def test_reliabilities_are_never_certain_and_need_things_that_several_people_judged() -> None:
    same = {str(thing): {"anna": "first", "ben": "first"} for thing in range(50)}
    assert max(reliabilities(same).values()) < 0.99
    with pytest.raises(ConfigError, match="Nobody answered about what somebody else answered about"):
        reliabilities({"one": {"anna": "first"}, "two": {"ben": "first"}})
