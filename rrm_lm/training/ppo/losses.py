"""PPO's tensors as pure functions: masks from lengths, rewards per token, advantages, losses.

Tensors are (episodes, time), where time counts response tokens up to the longest response. Positions after the end of a
response are masked. Masks are made from lengths, never from token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rrm_lm.training.processes import Total

_EPSILON = 1e-8  # added to a variance before its root, as in TRL


def this_process(tensor: Tensor) -> Tensor:
    """A `Total` over this process only."""
    return tensor


def is_before(lengths: Tensor, width: int) -> Tensor:
    """(episodes, width), True at the first ``lengths[i]`` positions of row i."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def kl_k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from samples of the policy, in nats: ``log p - log q``; unbiased (Schulman 2020, "k1")."""
    return log_probs - reference


def kl_k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from samples of the policy, in nats: ``q/p - 1 - log(q/p)``; unbiased, never negative ("k3")."""
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio  # exp - 1 would lose the digits of a small ratio


def place_scores(penalties: Tensor, scores: Tensor, places: Tensor) -> Tensor:
    """(episodes, time) rewards per token: the penalties, plus each episode's score at one position.

    `penalties` is (episodes, time), `scores` (episodes,), and `places` (episodes,) the index of the token that gets the
    score.
    """
    rewards = penalties.clone()
    rewards[torch.arange(len(scores), device=scores.device), places] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16).

    Args:
        rewards: (episodes, time), zero after the end.
        values: (episodes, time) value of the state before each token, zero after the end.

    Returns:
        Advantages and returns (targets of the value function), both (episodes, time).
    """
    last = torch.zeros_like(values[:, 0])
    next_values = torch.zeros_like(last)
    advantages = torch.zeros_like(values)
    for time in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, time] + gamma * next_values - values[:, time]
        last = delta + gamma * lam * last
        next_values = values[:, time]
        advantages[:, time] = last
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, total: Total = this_process) -> Tensor:
    """Scale the values where `mask` is True to variance 1 and shift them to mean 0 (unless `shift_mean` is False); zero
    elsewhere. `values` and `mask` have the same shape. `total` sums over processes, for a global mean and variance.
    """
    mask = mask.to(values.dtype)
    count, added = total(torch.stack([mask.sum(), (values * mask).sum()])).unbind()
    mean = added / count.clamp_min(1.0)
    squares = total((((values - mean) * mask) ** 2).sum())
    variance = squares / (count - 1.0).clamp_min(1.0)  # a single value has none
    scaled = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return (scaled if shift_mean else scaled + mean) * mask


def policy_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), per token.

    `old` is under the policy that sampled the tokens, and `cliprange` the maximum gain-increasing deviation of the
    probability ratio from 1. Returns losses, and a mask of where the clipped loss was larger. Shapes as given.
    """
    ratio = torch.exp(log_probs - old)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(values: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, or that of the values clipped to ``cliprange`` around the old ones, if it is larger.
    Returns losses, and a mask of where the clipped loss was larger. Shapes as given.
    """
    plain = (values - returns) ** 2
    clipped = (torch.clamp(values, old - cliprange, old + cliprange) - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain
