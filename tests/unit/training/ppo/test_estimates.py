"""PPO's tensors against numbers worked by hand, and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from trl.experimental.ppo.ppo_trainer import masked_whiten

from rrm_lm.training.ppo.estimates import (
    gae,
    is_before,
    kl_k1,
    kl_k3,
    place_scores,
    policy_losses,
    value_losses,
    whiten,
)


def test_masks_come_from_lengths() -> None:
    assert is_before(torch.tensor([2, 0, 3]), 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]


def test_advantages_by_hand() -> None:
    """Discount 0.5 and lambda 0.5: surprises 1 + 0.5 * 4 - 2 = 1 and 8 - 4 = 4; the first gets 1 + 0.25 * 4."""
    advantages, returns = gae(torch.tensor([[1.0, 8.0, 0.0]]), torch.tensor([[2.0, 4.0, 0.0]]), 0.5, 0.5)
    assert advantages.tolist() == [[2.0, 4.0, 0.0]]
    assert returns.tolist() == [[4.0, 8.0, 0.0]]


def test_without_discount_returns_are_what_is_still_to_come() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
    _, returns = gae(rewards, torch.tensor([[0.3, -1.0, 2.0], [1.0, 2.0, 0.0]]), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[7.0, 6.0, 4.0], [8.0, 5.0, 0.0]]))


def test_whitening_by_hand() -> None:
    """1, 3, 5 under the mask: mean 3, variance (4 + 0 + 4) / 2 = 4."""
    values, mask = torch.tensor([[1.0, 3.0], [5.0, 100.0]]), torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(whiten(values, mask, shift_mean=False), torch.tensor([[2.0, 3.0], [4.0, 0.0]]))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_trls_under_the_mask(shift_mean: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(5, 7, generator=generator), torch.rand(5, 7, generator=generator) < 0.6
    theirs = masked_whiten(values, mask, shift_mean) * mask
    torch.testing.assert_close(whiten(values, mask, shift_mean=shift_mean), theirs, atol=1e-6, rtol=1e-6)


def test_whitening_over_processes_is_that_of_all_their_values() -> None:
    values = torch.tensor([[1.0, 4.0, -2.0], [0.5, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    whole = whiten(values, mask)
    other, other_mask = values[1:], mask[1:].float()
    mean = float((values * mask).sum() / mask.sum())
    partner = iter(
        [
            torch.stack([other_mask.sum(), (other * other_mask).sum()]),  # what the other process adds to the first sum
            (((other - mean) * other_mask) ** 2).sum(),  # and to the second
        ]
    )
    mine = whiten(values[:1], mask[:1], total=lambda tensor: tensor + next(partner))
    torch.testing.assert_close(mine, whole[:1])


def test_a_single_value_and_equal_values_stay_finite() -> None:
    assert whiten(torch.tensor([[3.0]]), torch.tensor([[True]])).tolist() == [[0.0]]
    assert whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_policy_loss_by_hand() -> None:
    """Ratios 2, 2, 0.5 and 1 with a clip range of 0.2."""
    log_probs = torch.tensor([2.0, 2.0, 0.5, 1.0]).log()
    losses, clipped = policy_losses(log_probs, torch.zeros(4), torch.tensor([1.0, -1.0, -1.0, 3.0]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 2.0, 0.8, -3.0]))
    assert clipped.tolist() == [True, False, True, False]


def test_no_gradient_where_the_ratio_is_clipped() -> None:
    log_probs = torch.tensor([2.0, 2.0]).log().requires_grad_()
    losses, _ = policy_losses(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2)
    losses.sum().backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 2.0]))


def test_value_loss_by_hand() -> None:
    """Old value 1, return 3: a value of 2 is held at 1.2 (error 1.8); return 1.9: error 0.1 becomes 0.7."""
    losses, clipped = value_losses(torch.tensor([2.0, 2.0, 1.1]), torch.ones(3), torch.tensor([3.0, 1.9, 1.0]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([0.5 * 1.8**2, 0.5 * 0.7**2, 0.5 * 0.1**2]))
    assert clipped.tolist() == [True, True, False]


def test_divergences_by_hand() -> None:
    """p = 0.5, q = 0.25: k1 = log 2; k3 = 1/2 - 1 + log 2."""
    p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert float(kl_k1(p, q)) == pytest.approx(math.log(2))
    assert float(kl_k3(p, q)) == pytest.approx(math.log(2) - 0.5)
    assert float(kl_k3(p, p)) == 0.0


def test_both_divergences_are_unbiased() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = float((p * (p / q).log()).sum())
    for estimator in (kl_k1, kl_k3):
        assert float((p * estimator(p.log(), q.log())).sum()) == pytest.approx(exact, rel=1e-6)


def test_scores_are_given_at_their_place() -> None:
    penalties = torch.full((2, 3), -0.5)
    rewards = place_scores(penalties, torch.tensor([2.0, 4.0]), torch.tensor([0, 2]))
    assert rewards.tolist() == [[1.5, -0.5, -0.5], [-0.5, -0.5, 3.5]]
    assert penalties.tolist() == [[-0.5] * 3] * 2
