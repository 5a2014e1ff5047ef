"""Weights of criteria, and the reward they make."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, Labels, _labels, fit_weights, save_criteria
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.records import Criterion, read_criteria
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.losses import bradley_terry, used_grades
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
    reward = CriteriaReward([never, SHORT, same], allow_code=True)
    with caplog.at_level(logging.WARNING):
        reward.fit(pairs())
    assert "criterion headings is left out: no two responses of the comparisons differ" in caplog.text
    assert "criteria length and brief measure the same (correlation 1.00)" in caplog.text
    assert [one.name for one in reward.criteria] == ["length", "brief"]
    (parts,) = reward.contributions([prompt_of("what is it?")], [["# One\nok"]])
    expected = [one.weight * (-3 - one.mean) / one.scale for one in reward.criteria]  # type: ignore[operator]
    np.testing.assert_allclose(parts, [expected])


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
    save_criteria(reward, tmp_path)
    again = CriteriaReward.load(tmp_path, model.backbone, chat, allow_code=False)
    assert again is not None and again.criteria[0].low == pytest.approx(reward.criteria[0].low, rel=1e-5)
    asked = [prompt_of("hi")], [["one.", "one two three"]]
    np.testing.assert_allclose(again.rewards(*asked), reward.rewards(*asked), rtol=1e-5)
    assert [one.to_dict() for one in read_criteria(tmp_path / "criteria.yaml")] == [
        one.to_dict() for one in again.criteria
    ]
    assert CriteriaReward.load(tmp_path / "other", model.backbone, chat, allow_code=False) is None
    save_criteria(None, tmp_path)  # a model without criteria replaces one with
    assert CriteriaReward.load(tmp_path, model.backbone, chat, allow_code=False) is None


def test_a_criterion_that_was_added_by_hand_counts(tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text("- {statement: is short, measure: words, direction: less, weight: 2}")
    model = tiny_reward_model()
    reward = CriteriaReward.load(tmp_path, model.backbone, tiny_chat(), allow_code=False)
    assert reward is not None
    (rewards,) = reward.rewards([prompt_of("what is it?")], [["one", "one two three"]])
    assert rewards[0] - rewards[1] == pytest.approx(2 * 2 / DETECTORS["words"].scale)


def test_without_comparisons_the_weights_of_the_words_stay(caplog: pytest.LogCaptureFixture) -> None:
    reward = CriteriaReward([SHORT])
    with caplog.at_level(logging.INFO):
        reward.fit([])
    assert "no comparisons" in caplog.text
    (rewards,) = reward.rewards([prompt_of("what is it?")], [["one", "one two three"]])
    assert rewards[0] > rewards[1] and reward.criteria[0].weight == SHORT.weight


def test_weights_learn_from_grades_what_the_lora_part_learns() -> None:
    """The posterior's gradient is that of the Bradley-Terry loss, and coin flips teach nothing."""
    generator = np.random.default_rng(0)
    differences, prior = generator.normal(size=(40, 2)), np.array([0.4, -0.2])
    grades = generator.uniform(0, 3, 40).tolist()
    for use, smoothing in (("margin", 0.0), ("target", 0.0), ("target", 0.1), ("weight", 0.0), ("none", 0.1)):
        args = RewardConfig(output_dir="unused", grades=use, grade_scale=2.0)
        used = used_grades(grades, args)
        weights, _ = fit_weights(differences, prior, labels=_labels(used, smoothing))
        at = torch.tensor(weights, requires_grad=True)
        losses = bradley_terry(
            torch.tensor(differences) @ at,
            torch.zeros(40, dtype=torch.float64),
            shift=torch.tensor(used.shift or [0.0]),
            target=1.0 if used.logit is None else torch.tensor(used.logit, dtype=torch.float64).sigmoid(),
            label_smoothing=smoothing,
        )
        loss = (losses * torch.tensor(used.weight or [1.0])).sum() + ((at - torch.tensor(prior)) ** 2).sum() / 0.5
        loss.backward()
        assert at.grad is not None and float(at.grad.abs().max()) < 1e-3, use
    # A weight of 2 is worth two comparisons, and of margins that are far from their goal little is learned.
    twice, both = Labels(weight=np.full(40, 2.0)), np.concatenate([differences, differences])
    np.testing.assert_allclose(fit_weights(differences, prior, labels=twice), fit_weights(both, prior), rtol=1e-4)
    far, near = (fit_weights(differences, prior, 0.01, Labels(shift=shift))[1] / 0.01 for shift in (30.0, 0.0))
    assert np.all(far > 0.9999) and np.all(near < 0.9999)
    even = used_grades([0.0] * 40, RewardConfig(output_dir="unused", grades="target"))
    weights, _ = fit_weights(abs(differences), np.zeros(2), labels=_labels(even, 0.0))
    np.testing.assert_allclose(weights, 0.0, atol=1e-5)
