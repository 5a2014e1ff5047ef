"""Each loss against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.training.reward.losses import bradley_terry, centering, graded_target, rating_regression

torch.set_num_threads(1)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_bradley_terry() -> None:
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4, sigmoid(0) = 1/2
    losses = bradley_terry(values(math.log(3), 0.0, 5.0), values(0.0, math.log(3), 5.0))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4), math.log(2)])


def test_bradley_terry_far_out() -> None:
    losses = bradley_terry(torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0]))
    assert losses.tolist() == [0.0, 400.0]  # no overflow in float32


def test_shift_is_taken_from_the_margin() -> None:
    shifts = values(1.0, 0.0)
    losses = bradley_terry(values(1.0 + math.log(3)).expand(2), values(0.0).expand(2), shift=shifts)
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(1 + 1 / (3 * math.e))])
    assert bradley_terry(values(2.0), values(0.0), shift=2.0).item() == pytest.approx(math.log(2))


def test_soft_targets() -> None:
    losses = bradley_terry(values(math.log(3)).expand(3), values(0.0).expand(3), target=values(1.0, 0.75, 0.5))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert losses.tolist() == pytest.approx([math.log(4 / 3), entropy, 0.5 * math.log(4 / 3) + 0.5 * math.log(4)])


def test_label_smoothing() -> None:
    one = bradley_terry(values(math.log(3)), values(0.0), label_smoothing=0.1)
    assert one.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    # A label that says 3/4 and is flipped once in five: right with 3/4 * 4/5 + 1/4 * 1/5 = 13/20.
    both = bradley_terry(values(math.log(3)), values(0.0), target=0.75, label_smoothing=0.2)
    assert both.item() == pytest.approx(0.65 * math.log(4 / 3) + 0.35 * math.log(4))


def test_gradient_of_bradley_terry() -> None:
    chosen, rejected = values(math.log(3)).requires_grad_(), values(0.0).requires_grad_()
    bradley_terry(chosen, rejected).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.25)  # -(1 - sigmoid(margin))
    assert rejected.grad.item() == pytest.approx(0.25)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0.5, 1), st.floats(0, 0.49))
def test_swapping_a_pair_swaps_its_target(left: float, right: float, target: float, smoothing: float) -> None:
    one = bradley_terry(values(left), values(right), target=target, label_smoothing=smoothing)
    other = bradley_terry(values(right), values(left), target=1 - target, label_smoothing=smoothing)
    assert one.item() == pytest.approx(other.item(), abs=1e-9)
    assert one.item() >= 0


def test_graded_target() -> None:
    assert graded_target(values(0.0, math.log(3), math.inf)).tolist() == pytest.approx([0.5, 0.75, 1.0])
    assert graded_target(values(2 * math.log(3)), scale=2.0).item() == pytest.approx(0.75)


def test_centering() -> None:
    assert centering(values(1.0, -2.0, 3.0), values(1.0, 2.0, -0.5)).tolist() == [4.0, 0.0, 6.25]


def test_rating_regression() -> None:
    losses = rating_regression(values(math.log(3), 0.0, -math.log(3)), values(1.0, 0.3, 0.75))
    expected = [math.log(4 / 3), math.log(2), 0.75 * math.log(4) + 0.25 * math.log(4 / 3)]
    assert losses.tolist() == pytest.approx(expected)


def test_a_rating_is_fitted_where_the_reward_is_its_logit() -> None:
    reward = values(math.log(3)).requires_grad_()
    loss = rating_regression(reward, values(0.75))
    loss.sum().backward()
    assert reward.grad is not None and reward.grad.item() == pytest.approx(0.0, abs=1e-12)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))  # the rating's entropy
