"""Weights of criteria, and the reward they make."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, fit_weights
from rrm_lm.feedback.criteria.records import Criterion, read_criteria
from tests.tiny import comparison, prompt_of, tiny_chat, tiny_reward_model

SHORT = Criterion("is short", "length", "words", "less")


def pairs(count: int = 12, better: str = "short") -> list[Any]:
    texts = [("one two", "one two three four five " * (1 + n % 3)) for n in range(count)]
    sides = texts if better == "short" else [(long, short) for short, long in texts]
    return [comparison(f"what is it {n}?", f"{a}{n}.", f"{b}{n}.", row=n) for n, (a, b) in enumerate(sides)]


def test_weights_are_the_maximum_of_the_posterior() -> None:
    generator = np.random.default_rng(0)
    true = np.array([1.5, -0.5, 0.0])
    differences = generator.normal(size=(4000, 3))
    won = generator.random(4000) < 1 / (1 + np.exp(-differences @ true))
    differences[~won] *= -1
    weights, deviations = fit_weights(differences, np.zeros(3), prior_std=10.0)
    assert np.all(np.abs(weights - true) < 3 * deviations) and np.all(deviations < 0.06)

    def loss(at: Any) -> float:
        return float(np.logaddexp(0, -differences @ at).sum() + (at @ at) / 200)

    assert all(loss(weights) < loss(weights + step) for step in 0.01 * np.vstack([np.eye(3), -np.eye(3)]))


def test_without_comparisons_the_prior_remains() -> None:
    weights, deviations = fit_weights(np.zeros((0, 2)), np.array([0.3, 0.7]), 0.5)
    np.testing.assert_allclose(weights, [0.3, 0.7])
    np.testing.assert_allclose(deviations, [0.5, 0.5])


def test_comparisons_confirm_or_overrule_the_words() -> None:
    confirmed, overruled = CriteriaReward([SHORT]), CriteriaReward([SHORT])
    confirmed.fit(pairs())
    overruled.fit(pairs(better="long"))
    one, other = confirmed.criteria[0], overruled.criteria[0]
    assert one.weight > 0.5 > 0 > other.weight
    assert one.low is not None and one.high is not None and one.low < one.weight < one.high
    (rewards,) = confirmed.rewards([prompt_of("what is it?")], [["one two.", "one two three four five six."]])
    assert rewards[0] > rewards[1]
    value = (-2 - one.mean) / one.scale * one.weight  # type: ignore[operator]
    assert rewards[0] == pytest.approx(value)


def test_useless_criteria_are_named(caplog: pytest.LogCaptureFixture) -> None:
    same = Criterion(
        "has few sentences or words", "brief", "function: tests.unit.evaluation.preferences.test_criteria:few"
    )
    never = Criterion("has a heading", measure="headings")
    reward = CriteriaReward([SHORT, never, same], allow_code=True)
    with caplog.at_level(logging.WARNING):
        reward.fit(pairs())
    assert "criterion headings is left out: no two responses of the comparisons differ" in caplog.text
    assert "criteria length and brief measure the same (correlation 1.00)" in caplog.text
    assert reward.criteria[1].scale is None
    (parts,) = reward.contributions([prompt_of("what is it?")], [["# One\nok"]])
    assert parts[0, 1] == 0.0 and parts[0, 0] != 0.0


def few(prompts: Any, responses: Any) -> list[float]:
    return [-float(len(one.split())) for one in responses]


def broken(prompts: Any, responses: Any) -> list[Any]:
    if any("explode" in one for one in responses):
        raise RuntimeError("no")
    return [None if "odd" in one else math.nan if "nan" in one else 1.0 for one in responses]


def test_measures_that_fail_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    place = "function: tests.unit.evaluation.preferences.test_criteria:broken"
    reward = CriteriaReward([Criterion("is fine", "fine", place, mean=0.0, scale=1.0), SHORT], allow_code=True)
    reward.criteria[1] = Criterion("is short", "length", "words", "less", mean=-2.0, scale=1.0)
    with caplog.at_level(logging.WARNING):
        (found,) = reward.contributions([prompt_of("hi")], [["odd one", "a nan", "all fine"]])
        (worse,) = reward.contributions([prompt_of("hi")], [["explode now"]])
    np.testing.assert_allclose(found, [[0, 0], [0, 0], [0.5, 0]])
    np.testing.assert_allclose(worse, [[0, 0]])
    assert "criterion fine has no value for 2 responses" in caplog.text
    assert "criterion fine raised RuntimeError: no" in caplog.text


def test_code_needs_permission_and_questions_a_model() -> None:
    with pytest.raises(ConfigError, match="--allow_code"):
        CriteriaReward([Criterion("is fine", measure="function: os.path:join")])
    with pytest.raises(ConfigError, match="no model to ask"):
        CriteriaReward([Criterion("is {kind}")])


def test_a_question_is_answered_by_the_backbone() -> None:
    model = tiny_reward_model()
    reward = CriteriaReward([Criterion("is {kind}", mean=0.0, scale=1.0)], model.backbone, tiny_chat())
    (values,) = reward.values([prompt_of("what is it?")], [["yes", "no i do not know"]])
    assert values.shape == (2, 1) and np.isfinite(values).all() and values[0, 0] != values[1, 0]


def test_saved_criteria_give_the_same_rewards(tmp_path: Path) -> None:
    model, chat = tiny_reward_model(), tiny_chat()
    reward = CriteriaReward([SHORT, Criterion("ends", measure="finished")])
    reward.fit(pairs())
    reward.save(tmp_path)
    again = CriteriaReward.load(tmp_path, model.backbone, chat, allow_code=False)
    assert again is not None and again.criteria[0].low == pytest.approx(reward.criteria[0].low, rel=1e-5)
    asked = [prompt_of("hi")], [["one.", "one two three"]]
    np.testing.assert_allclose(again.rewards(*asked), reward.rewards(*asked), rtol=1e-5)
    assert [one.to_dict() for one in read_criteria(tmp_path / "criteria.yaml")] == [
        one.to_dict() for one in again.criteria
    ]
    assert CriteriaReward.load(tmp_path / "other", model.backbone, chat, allow_code=False) is None
