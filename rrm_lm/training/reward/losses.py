"""Losses of reward models, as pure functions of tensors and examples.

Each returns one unreduced value per item. The trainer divides by the number of items in the global batch, so one batch
of eight and eight accumulated batches of one give the same gradient.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import truediv
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rrm_lm.models.reward import RewardOutput
from rrm_lm.text.batching import from_host
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import RewardExample

# The probabilities of at most 0, 1, 2 ... under a Poisson distribution of mean 1.
_POISSON = list(accumulate(accumulate(range(1, 20), truediv, initial=math.exp(-1))))


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    shift: Tensor | float = 0.0,
    target: Tensor | float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of preferences under the Bradley-Terry model.

    With ``m = chosen - rejected - shift`` and ``p`` the probability that the label is right,
    ``-p log sigmoid(m) - (1 - p) log sigmoid(-m)``, where ``p = target (1 - s) + (1 - target) s`` for smoothing ``s``.

    Args:
        chosen: (pairs,) rewards of the preferred responses.
        rejected: (pairs,) rewards of the others.
        shift: (pairs,) or scalar: the target margin (Touvron et al. 2023, arXiv 2307.09288, eq. 2).
        target: (pairs,) or scalar in [0.5, 1]: a graded label, the probability that the chosen response is better.
        label_smoothing: Assumed share of flipped labels (the conservative loss of Mitchell 2023).

    Returns:
        (pairs,) losses in nats.
    """
    margin = chosen - rejected - shift
    right = target * (1.0 - label_smoothing) + (1.0 - target) * label_smoothing
    return -(right * F.logsigmoid(margin) + (1.0 - right) * F.logsigmoid(-margin))


def graded_target(grade: Tensor, scale: float = 1.0) -> Tensor:
    """``sigmoid(grade / scale)``: a grade (0 = no preference) as the probability that the chosen response is better."""
    return torch.sigmoid(grade / scale)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(pairs,) squared sums of two rewards, pulling their mean to zero (Eisenstein et al. 2023, arXiv 2312.09244)."""
    return (chosen + rejected) ** 2


def rating_regression(reward: Tensor, rating: Tensor) -> Tensor:
    """Cross-entropy between a rating in [0, 1] and ``sigmoid(reward)``.

    The reward stays a logit, so ratings and comparisons share one scale: a response rated 0.5 has reward 0. Rewards and
    ratings are (responses,). Returns (responses,) losses in nats; the minimum is the entropy of the rating, not zero.
    """
    return bradley_terry(reward, torch.zeros_like(reward), target=rating)


class Grades(NamedTuple):
    """What graded preferences mean for (pairs,) comparisons; None for what does not apply."""

    shift: list[float] | None = None  # the margin to reach
    logit: list[float] | None = None  # of the probability that the chosen response is better
    weight: list[float] | None = None


def used_grades(grades: Sequence[float | None], args: RewardConfig) -> Grades:
    """The grades as `args.grades` uses them. A comparison without one is certain, of weight 1, and needs no margin."""
    scaled = [None if grade is None else grade / args.grade_scale for grade in grades]
    if args.grades == "margin":
        return Grades(shift=[grade or 0.0 for grade in scaled])
    if args.grades == "target":
        return Grades(logit=[math.inf if grade is None else grade for grade in scaled])
    return Grades(weight=[1.0 if grade is None else grade for grade in scaled]) if args.grades == "weight" else Grades()


# -- the losses of examples -------------------------------------------------------------------------------------------


def pair_rewards(rewards: Tensor, examples: Sequence[RewardExample]) -> Tensor:
    """(pairs, 2) rewards of the chosen and the rejected response, from (lines,) rewards."""
    chosen, rejected, _ = _pair_lines(examples)
    return torch.stack([_at(rewards, chosen), _at(rewards, rejected)], dim=-1)


def pair_margins(rewards: Tensor, examples: Sequence[RewardExample]) -> Tensor:
    """(pairs,) reward(chosen) - reward(rejected), from (lines,) rewards."""
    pairs = pair_rewards(rewards, examples)
    return pairs[:, 0] - pairs[:, 1]


def pair_losses(output: RewardOutput, examples: Sequence[RewardExample], args: RewardConfig) -> Tensor:
    """(pairs,) Bradley-Terry losses with the configured grades, smoothing and centering; for an ensemble, the mean over
    members, each with its own weight of the pair.
    """
    chosen, rejected, grades = _pair_lines(examples)
    if not chosen:
        return output.rewards.new_zeros(0)
    left, right = _at(output.members, chosen), _at(output.members, rejected)
    used = used_grades(grades, args)
    shift = 0.0 if used.shift is None else _like(left, used.shift)[:, None]
    target = 1.0 if used.logit is None else graded_target(_like(left, used.logit))[:, None]
    losses = bradley_terry(left, right, shift=shift, target=target, label_smoothing=args.label_smoothing_factor)
    if used.weight is not None:
        losses = losses * _like(left, used.weight)[:, None]
    if args.center_rewards_coefficient:
        losses = losses + args.center_rewards_coefficient * centering(left, right)
    return _mean_over_members(losses, [example for example in examples for _ in example.pairs], args.seed)


def rating_losses(output: RewardOutput, examples: Sequence[RewardExample], seed: int = 0) -> Tensor:
    """(ratings,) rating-regression losses; for an ensemble, averaged as for pairs."""
    lines, ratings, offset = [], [], 0
    for example in examples:
        lines += [offset + line for line, _ in example.ratings]
        ratings += [rating for _, rating in example.ratings]
        offset += len(example.lines)
    if not lines:
        return output.rewards.new_zeros(0)
    rewards = _at(output.members, lines)
    losses = rating_regression(rewards, _like(rewards, ratings)[:, None].expand_as(rewards))
    return _mean_over_members(losses, [example for example in examples for _ in example.ratings], seed)


def chosen_lines(examples: Sequence[RewardExample]) -> list[int]:
    """Line indices (over all examples) of the chosen responses, each once."""
    return list(dict.fromkeys(_pair_lines(examples)[0]))


def _at(numbers: Tensor, places: Sequence[int]) -> Tensor:
    return numbers[from_host(places, numbers.device, torch.long)]


def _like(numbers: Tensor, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return from_host(values, numbers.device, numbers.dtype)


def _pair_lines(examples: Sequence[RewardExample]) -> tuple[list[int], list[int], list[float | None]]:
    """Line indices (over all examples) of chosen and rejected responses, and grades."""
    chosen, rejected, grades, offset = [], [], [], 0
    for example in examples:
        for pair in example.pairs:
            chosen.append(offset + pair.chosen)
            rejected.append(offset + pair.rejected)
            grades.append(pair.grade)
        offset += len(example.lines)
    return chosen, rejected, grades


# -- ensembles --------------------------------------------------------------------------------------------------------


def _mean_over_members(losses: Tensor, examples: Sequence[RewardExample], seed: int) -> Tensor:
    """(items, heads) losses -> (items,), weighted by how often each member sees the item's prompt."""
    heads = losses.shape[-1]
    if heads == 1:
        return losses.squeeze(-1)
    weights = [member_weights(seed, heads, example.prompt_id) for example in examples]
    return (losses * _like(losses, weights)).mean(-1)


def member_weights(seed: int, heads: int, prompt_id: str) -> tuple[float, ...]:
    """How often each ensemble member sees the feedback on a prompt: each member has its own bootstrap of the prompts.

    In a bootstrap of many prompts, the count of a prompt follows a Poisson distribution with mean 1 (Oza and Russell
    2001). The counts depend only on seed, member and prompt: all feedback on a prompt goes to the same members, and
    batches, processes and resumed runs do not change them. A single member sees every prompt once. Returns (heads,)
    counts, with mean 1 over prompts.
    """
    if heads == 1:
        return (1.0,)
    hashes = [hashlib.sha256(f"{seed}/{member}/{prompt_id}".encode()).digest() for member in range(heads)]
    return tuple(float(bisect_right(_POISSON, int.from_bytes(digest[:8], "big") / 2**64)) for digest in hashes)
