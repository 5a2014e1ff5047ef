"""Simulated overseers: consistent, noisy as stated, and limited as stated."""

import math
from typing import Any

import pytest

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.asking.overseers import Overseer, SimulatedOverseer, Verdict
from rrm_lm.feedback.records import Message

ASK = (Message("user", "Say something short."),)


def ask(number):
    return (Message("user", f"Say something short, {number}."),)


def shorter_is_better(prompt, response):
    return -float(len(response.split()))


def preferred_share(overseer, responses, wanted, count=3000):
    """How often, over many prompts, the wanted response is preferred."""
    verdicts = [overseer.compare(ask(i), responses).preferred for i in range(count)]
    return sum(verdict is not None and responses[verdict] == wanted for verdict in verdicts) / count


def test_without_noise_the_best_of_any_number_wins():
    overseer = SimulatedOverseer(shorter_is_better)
    assert isinstance(overseer, Overseer)
    assert overseer.compare(ASK, ["a b c", "a", "a b"]) == Verdict(1)
    assert overseer.compare(ASK, ["a b", "c d"]).preferred is None


def test_the_gold_reward_is_never_handed_out():
    assert SimulatedOverseer(shorter_is_better).compare(ASK, ["a b c", "a"]).strength is None


def test_temperature_gives_bradley_terry_probabilities():
    overseer = SimulatedOverseer(shorter_is_better, temperature=2.0)
    share = preferred_share(overseer, ["a b c", "a"], "a")
    assert share == pytest.approx(1 / (1 + math.exp(-2 / 2)), abs=0.03)  # 3 standard errors of 3000 draws


def test_epsilon_is_the_share_of_slips():
    overseer = SimulatedOverseer(shorter_is_better, epsilon=0.2)
    assert preferred_share(overseer, ["a b c", "a"], "a") == pytest.approx(0.8, abs=0.025)
    three = ["a b c", "a", "a b"]
    assert preferred_share(overseer, three, "a") == pytest.approx(0.8, abs=0.025)
    assert preferred_share(overseer, three, "a b") == pytest.approx(0.1, abs=0.02)


def test_noise_depends_on_the_question_and_the_person_but_not_on_the_order_or_on_earlier_questions():
    overseer = SimulatedOverseer(shorter_is_better, temperature=3.0, epsilon=0.1)
    other = SimulatedOverseer(shorter_is_better, temperature=3.0, epsilon=0.1, seed=1)
    differs = 0
    for i in range(200):
        pair = ["a b c", f"a {i}"]
        first = overseer.compare(ask(i), pair).preferred
        swapped = overseer.compare(ask(i), pair[::-1]).preferred
        assert first is not None and swapped is not None
        assert pair[first] == pair[::-1][swapped]
        assert overseer.compare(ask(i), pair).preferred == first
        differs += other.compare(ask(i), pair).preferred != first
    assert 20 < differs < 150


def test_indifference_hides_small_differences():
    overseer = SimulatedOverseer(shorter_is_better, indifference=1.0, temperature=5.0)
    assert overseer.compare(ASK, ["a b", "a"]).preferred is None
    assert overseer.compare(ASK, ["a b c", "a"]).preferred is not None


def test_a_limited_view_decides_on_what_it_sees():
    def polite(prompt, response):
        return float("please" in response)

    hasty = SimulatedOverseer(
        polite,
        name="hasty",
        limit="reads the first three words",
        view=lambda prompt, response: (prompt, " ".join(response.split()[:3])),
        critic=lambda prompt, response: f"I read: {response}",
    )
    late = "Do this for me please"
    assert hasty.compare(ASK, ["Do this for me", late]).preferred is None
    assert SimulatedOverseer(polite).compare(ASK, ["Do this for me", late]).preferred == 1
    assert hasty.critique(ASK, late) == "I read: Do this for"
    assert hasty.limit == "reads the first three words"


def test_misuse_is_refused():
    overseer = SimulatedOverseer(shorter_is_better)
    with pytest.raises(ConfigError, match="at least two"):
        overseer.compare(ASK, ["a"])
    with pytest.raises(ConfigError, match="no critic"):
        overseer.critique(ASK, "a")
    with pytest.raises(ConfigError, match="gold reward"):
        SimulatedOverseer(lambda prompt, response: math.nan).compare(ASK, ["a", "b"])
    impossible = [("temperature", -1.0), ("temperature", math.inf), ("epsilon", 1.5), ("indifference", math.nan)]
    for name, value in impossible:
        options: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError, match=name):
            SimulatedOverseer(shorter_is_better, **options)
