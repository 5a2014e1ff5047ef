"""The losses as pure functions of tensors.

Every loss returns one value per item, unreduced: the trainer divides by the number of items in the whole global
batch, so that a batch of eight and eight accumulated batches of one give the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    shift: Tensor | float = 0.0,
    target: Tensor | float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the stated preferences under the Bradley-Terry model.

    With ``m = chosen - rejected - shift`` and ``p`` the probability that the label is right,
    ``-p log sigmoid(m) - (1 - p) log sigmoid(-m)``, where ``p = target (1 - s) + (1 - target) s`` for smoothing ``s``.

    Args:
        chosen: (pairs,) rewards of the preferred responses.
        rejected: (pairs,) rewards of the others.
        shift: (pairs,) or scalar: how far apart the rewards should be (Touvron et al. 2023, arXiv 2307.09288, eq. 2).
        target: (pairs,) or scalar in [0.5, 1]: a graded label, the probability that the chosen response is better.
        label_smoothing: Share of labels believed to be flipped (the conservative loss of Mitchell 2023).

    Returns:
        (pairs,) losses in nats.
    """
    margin = chosen - rejected - shift
    right = target * (1.0 - label_smoothing) + (1.0 - target) * label_smoothing
    return -(right * F.logsigmoid(margin) + (1.0 - right) * F.logsigmoid(-margin))


def graded_target(grade: Tensor, scale: float = 1.0) -> Tensor:
    """A grade of preference strength (0 = none) as the probability that the chosen response is better.

    ``sigmoid(grade / scale)``: 0.5 without a preference, towards 1 for a strong one.
    """
    return torch.sigmoid(grade / scale)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(pairs,) squared sums of two rewards, pulling their mean to zero (Eisenstein et al. 2023, arXiv 2312.09244)."""
    return (chosen + rejected) ** 2


def rating_regression(reward: Tensor, rating: Tensor) -> Tensor:
    """Cross-entropy between a rating in [0, 1] and ``sigmoid(reward)``.

    The reward stays a logit, so ratings and comparisons speak about the same scale: a response rated 0.5 has reward 0.

    Args:
        reward: (responses,) rewards.
        rating: (responses,) ratings in [0, 1].

    Returns:
        (responses,) losses in nats; at its least the entropy of the rating, not zero.
    """
    return bradley_terry(reward, torch.zeros_like(reward), target=rating)


def critique_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of writing the critique, token by token.

    Args:
        logits: (tokens, vocabulary) at the positions before each critique token.
        tokens: (tokens,) the critique's token ids.

    Returns:
        (tokens,) losses in nats.
    """
    return F.cross_entropy(logits.float(), tokens, reduction="none")
