"""The KL coefficient, the rewards' scale, and when a run has gone too far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rrm_lm.training.ppo.control import KLControl, RewardScale, Steering, out_of_bounds


def test_a_fixed_coefficient_stays() -> None:
    control = KLControl(0.05)
    control.update(1000.0)
    assert control.coefficient == 0.05


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (60.0, 1.02), (0.0, 0.98), (6.6, 1.01)])
def test_an_adaptive_one_moves_towards_the_target_by_a_clipped_error(kl: float, factor: float) -> None:
    control = KLControl(0.05, target=6.0, gain=0.1)
    control.update(kl)
    assert control.coefficient == pytest.approx(0.05 * factor)


def test_the_scale_of_batches_is_that_of_all_rewards() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, -3.0])
    scale = RewardScale()
    scale.add(rewards[:2], lambda tensor: tensor)
    scale.add(rewards[2:], lambda tensor: tensor)
    assert scale.mean == pytest.approx(float(rewards.mean()))
    assert scale.deviation == pytest.approx(float(rewards.std()))
    torch.testing.assert_close(scale(rewards), ((rewards - rewards.mean()) / rewards.std()))


def test_a_constant_reward_becomes_zero() -> None:
    scale = RewardScale()
    scale.add(torch.full((4,), 7.0), lambda tensor: tensor)
    assert scale(torch.full((4,), 7.0)).tolist() == [0.0] * 4


def test_a_saved_state_goes_on(tmp_path: Path) -> None:
    one = Steering(KLControl(0.1, 6.0), RewardScale())
    one.kl.update(60.0)
    one.scale.add(torch.tensor([1.0, 2.0]), lambda tensor: tensor)
    other = Steering(KLControl(0.5, 6.0), RewardScale())
    one.save(tmp_path)
    other.load(tmp_path)
    assert other == one


def test_a_fixed_coefficient_is_that_of_the_settings_now(tmp_path: Path) -> None:
    Steering(KLControl(0.05), RewardScale()).save(tmp_path)
    now = Steering(KLControl(0.2), RewardScale())
    now.load(tmp_path)
    assert now.kl.coefficient == 0.2


def test_what_runs_away_is_named() -> None:
    assert out_of_bounds("the KL", 3.0, 5.0, "max_kl") is None
    assert out_of_bounds("the KL", 3.0, None, "max_kl") is None
    assert out_of_bounds("the KL", 7.0, 5.0, "max_kl") == "the KL is 7, above max_kl 5"
    assert out_of_bounds("the KL", float("nan"), None, "max_kl") == "the KL is nan"
