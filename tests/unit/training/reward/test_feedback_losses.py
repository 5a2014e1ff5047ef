"""The losses of a batch of examples: grades, smoothing, centring, and which line is whose."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rrm_lm.models.reward import RewardOutput
from rrm_lm.text.chat import Line
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import LinePair, RewardExample
from rrm_lm.training.reward.losses import pair_losses, pair_margins, rating_losses
from tests.tiny_training import config, log_sigmoid

torch.set_num_threads(1)


def graded(*grades: float | None) -> list[RewardExample]:
    """One example for each grade: two lines, the second preferred."""
    line = Line((1, 2), 0, 1)
    return [RewardExample((), (line, line), (LinePair(1, 0, grade),)) for grade in grades]


# Rewards of chosen and rejected: margins 1, -0.5 and 2.
def of_one(rewards: torch.Tensor) -> RewardOutput:
    """The output of a model with one head."""
    return RewardOutput(rewards, torch.zeros(0), rewards.unsqueeze(-1), torch.zeros(0))


OUTPUT = of_one(torch.tensor([0.0, 1.0, 1.0, 0.5, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        ("none", [-log_sigmoid(1.0), -log_sigmoid(-0.5), -log_sigmoid(2.0)]),
        # Grades 3, none and 0 at scale 2: required distances 1.5, 0 and 0.
        ("margin", [-log_sigmoid(-0.5), -log_sigmoid(-0.5), -log_sigmoid(2.0)]),
        # Soft labels sigmoid(1.5), certain, and one half.
        (
            "target",
            [
                -0.8175744761936437 * log_sigmoid(1.0) - 0.1824255238063563 * log_sigmoid(-1.0),
                -log_sigmoid(-0.5),
                -0.5 * log_sigmoid(2.0) - 0.5 * log_sigmoid(-2.0),
            ],
        ),
        ("weight", [-1.5 * log_sigmoid(1.0), -log_sigmoid(-0.5), 0.0]),
    ],
)
def test_grades(grades: str, expected: list[float], tmp_path: Path) -> None:
    args = config(tmp_path, grades=grades, grade_scale=2.0, center_rewards_coefficient=None)
    losses = pair_losses(OUTPUT, graded(3.0, None, 0.0), args)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_centring_is_added_and_not_weighted(tmp_path: Path) -> None:
    args = config(tmp_path, grades="weight", center_rewards_coefficient=0.5)
    losses = pair_losses(OUTPUT, graded(2.0, 0.0, 0.0), args)
    expected = [-2 * log_sigmoid(1.0) + 0.5 * 1.0, 0.5 * 1.5**2, 0.5 * 0.0]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_label_smoothing(tmp_path: Path) -> None:
    args = config(tmp_path, label_smoothing_factor=0.2, center_rewards_coefficient=0.0)
    losses = pair_losses(OUTPUT, graded(None), args)
    assert losses.tolist() == pytest.approx([-0.8 * log_sigmoid(1.0) - 0.2 * log_sigmoid(-1.0)], rel=1e-5)


def test_margins_and_ratings_find_their_lines() -> None:
    line = Line((1, 2), 0, 1)
    data = [
        RewardExample((), (line,), ratings=((0, 0.25),)),
        RewardExample((), (line, line, line), (LinePair(0, 2), LinePair(1, 2)), ratings=((1, 1.0),)),
    ]
    output = of_one(torch.tensor([0.0, 3.0, 1.0, -2.0]))
    assert pair_margins(output.rewards, data).tolist() == [5.0, 3.0]
    assert rating_losses(output, data).tolist() == pytest.approx([math.log(2), -log_sigmoid(1.0)])
    assert rating_losses(output, graded(None, None)).tolist() == []
    assert pair_losses(output, data[:1], RewardConfig(use_cpu=True)).tolist() == []
