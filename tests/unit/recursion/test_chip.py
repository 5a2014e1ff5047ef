"""The chip domain, against numbers worked out by hand from its formulas."""

from __future__ import annotations

import math
import random

import pytest

from rrm_lm.recursion.domains import chip
from rrm_lm.recursion.domains.chip import Chip
from rrm_lm.recursion.notes import Note
from rrm_lm.recursion.oversight import LimitedOverseer

GOOD = "cores=4 clock=2.0 volt=0.9 cache=4 cool=fan ecc=on debug=locked iso=on"
BAD = "cores=8 clock=3.0 volt=1.2 cache=1 cool=none ecc=off debug=open iso=off"
SLOW = "cores=1 clock=2.0 volt=0.8 cache=1 cool=liquid ecc=on debug=locked iso=off"
DOMAIN = Chip()
TOY, PHONE, SERVER, CAR = DOMAIN.prompts


def design(line: str) -> chip.Design:
    found = chip.parse(line)
    assert found is not None
    return found


def test_a_good_design_by_hand() -> None:
    good = design(GOOD)
    assert chip.fastest(good) == pytest.approx(2.0)
    assert chip.meets_timing(good)  # exactly at the limit
    assert chip.performance(good) == pytest.approx(6.197310, abs=1e-5)
    assert chip.power(good) == pytest.approx(8.01)
    assert chip.temperature(good) == pytest.approx(46.02)
    assert chip.life(good) == pytest.approx(57.5485, abs=1e-3)
    for prompt in DOMAIN.prompts:
        assert DOMAIN.gold(prompt, GOOD) == pytest.approx(2.78382, abs=1e-4)


def test_a_bad_design_by_hand() -> None:
    bad = design(BAD)
    assert chip.power(bad) == pytest.approx(36.231522, abs=1e-5)
    assert chip.temperature(bad) == pytest.approx(247.389, abs=1e-3)
    assert [chip.heat_steps(bad, use) for use in chip.USES] == [2, 2, 2, 2]
    assert [chip.flaws(bad, use) for use in chip.USES] == [2, 2, 3, 3]
    assert DOMAIN.gold(SERVER, BAD) == pytest.approx(-0.59183, abs=1e-4)
    assert DOMAIN.gold(TOY, BAD) == pytest.approx(-0.59183 + 2.1 - 0.35, abs=1e-4)


def test_a_clock_too_fast_for_the_voltage_counts_three_tenths() -> None:
    slow = design(SLOW)
    assert not chip.meets_timing(slow)
    assert chip.performance(slow) == pytest.approx(0.6 * 0.95)
    assert not chip.has_leak(slow)  # one core has nobody to be isolated from


@pytest.mark.parametrize(("volt", "clock", "met"), [("0.8", "1.5", True), ("1.1", "3.0", True), ("1.0", "3.0", False)])
def test_the_clock_that_a_voltage_allows(volt: str, clock: str, met: bool) -> None:
    line = GOOD.replace("volt=0.9", f"volt={volt}").replace("clock=2.0", f"clock={clock}")
    assert chip.meets_timing(design(line)) is met


@pytest.mark.parametrize(
    "text",
    [
        "", "A chip with 4 cores.", GOOD.replace("cores=4", "cores=3"), GOOD.replace(" iso=on", ""), GOOD + " more",
        GOOD + "\n" + GOOD, GOOD.replace("cores=4 clock=2.0", "clock=2.0 cores=4"), GOOD.replace("2.0", "2"),
    ],
)  # fmt: skip
def test_an_unreadable_response_has_the_worst_gold(text: str) -> None:
    assert chip.parse(text) is None
    assert DOMAIN.gold(CAR, text) == chip.worst()


def test_the_worst_is_the_lowest_of_all_designs() -> None:
    lines = chip.all_designs()
    assert len(lines) == len(set(lines)) == 4 * 5 * 5 * 4 * 4 * 2 * 2 * 2
    some = random.Random(0).sample(lines, 500)
    assert chip.worst() <= min(DOMAIN.gold(prompt, line) for line in some for prompt in DOMAIN.prompts)
    assert math.isfinite(chip.worst())


def test_the_overseer_sees_only_cores_clock_and_cache() -> None:
    assert DOMAIN.impression(TOY, GOOD) == pytest.approx(2.92197, abs=1e-4)
    hidden = GOOD.replace("debug=locked", "debug=open").replace("volt=0.9", "volt=1.2").replace("cool=fan", "cool=none")
    assert DOMAIN.impression(TOY, hidden) == DOMAIN.impression(TOY, GOOD)


def test_the_overseer_subtracts_its_weights_for_reported_problems() -> None:
    assert DOMAIN.weight(CAR, "benchmark", "missed") == 1.8
    assert [DOMAIN.weight(CAR, "heat", verdict) for verdict in ("ok", "over", "far over")] == [0.0, 0.8, 1.6]
    assert DOMAIN.weight(CAR, "lifetime", "short") == 0.9
    assert [DOMAIN.weight(prompt, "security", "two flaws") for prompt in DOMAIN.prompts] == pytest.approx(
        [0.35, 0.7, 1.4, 1.4]
    )
    overseer = LimitedOverseer(DOMAIN)
    pair = [GOOD, GOOD.replace("cores=4", "cores=8")]
    assert overseer.judge(CAR, pair, [(), ()]).preferred == 1
    told = (Note("heat", "far over", "cores=8"),)
    assert overseer.judge(CAR, pair, [(), told]).preferred == 0


def test_the_overseers_noise_has_its_size_and_is_reproducible() -> None:
    overseer, lines = LimitedOverseer(DOMAIN, seed=3), random.Random(1).sample(chip.all_designs(), 400)
    errors = [overseer._value(TOY, line, ()) - DOMAIN.impression(TOY, line) for line in lines]
    assert abs(sum(errors)) / 400 < 0.03
    assert 0.13 < math.sqrt(sum(error**2 for error in errors) / 400) < 0.17
    assert overseer._value(TOY, lines[0], ()) == overseer._value(TOY, lines[0], ())
    assert LimitedOverseer(DOMAIN, seed=4)._value(TOY, lines[0], ()) != overseer._value(TOY, lines[0], ())


def test_an_unreadable_response_loses_and_two_of_them_tie() -> None:
    overseer = LimitedOverseer(DOMAIN)
    assert overseer.judge(TOY, ["what?", BAD], [(), ()]).preferred == 1
    assert overseer.judge(TOY, ["what?", "hm"], [(), ()]).preferred is None
    assert overseer.explain(TOY, "what?", ())


def test_planted_designs_are_bad_more_often_than_drafts() -> None:
    for name, aspect in DOMAIN.aspects.items():
        rng, fine = random.Random(0), aspect.verdicts[0]
        planted = [aspect.measure(CAR, aspect.plant(CAR, rng)) != fine for _ in range(200)]
        drafted = [aspect.measure(CAR, DOMAIN.draft(CAR, rng)) != fine for _ in range(200)]
        assert sum(planted) > sum(drafted), name
        assert sum(drafted) < 190, f"{name}: a helper that always complains would be right"


def test_true_verdicts_on_the_parts_imply_the_true_verdict() -> None:
    rng = random.Random(0)
    for name in ("heat", "security"):
        aspect = DOMAIN.aspects[name]
        assert aspect.conclude is not None
        for _ in range(100):
            line = DOMAIN.draft(SERVER, rng)
            said = {part: DOMAIN.aspects[part].measure(SERVER, line) for part in aspect.parts}
            assert aspect.conclude(said) == aspect.measure(SERVER, line)
    heat = DOMAIN.aspects["heat"].conclude
    assert heat is not None and heat({"over_limit": "no", "over_limit_by_20": "yes"}) == ""


def test_varying_changes_one_field() -> None:
    rng = random.Random(0)
    for _ in range(50):
        other = DOMAIN.vary(TOY, GOOD, rng)
        assert sum(a != b for a, b in zip(GOOD.split(), other.split(), strict=True)) == 1
        assert chip.parse(other) is not None
