"""PPO's tensors as pure functions: masks from lengths, rewards per token, advantages, losses.

Episodes stand in rows of (episodes, time), where time counts response tokens and ends at the longest response. What is
behind the end of a response is masked, and the mask is made from lengths, never from token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rrm_lm.training.processes import Total

_EPSILON = 1e-8  # added to a variance before its root, as TRL has it


def _alone(tensor: Tensor) -> Tensor:
    """The sum over processes where there is only one."""
    return tensor


def is_before(lengths: Tensor, width: int) -> Tensor:
    """(episodes, width), True at the first ``lengths[i]`` places of row i."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def kl_k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from samples of the policy, in nats: ``log p - log q``; unbiased (Schulman 2020, "k1")."""
    return log_probs - reference


def kl_k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from samples of the policy, in nats: ``q/p - 1 - log(q/p)``; unbiased, never negative ("k3")."""
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio  # exp - 1 would lose the digits of a small ratio


def place_scores(penalties: Tensor, scores: Tensor, places: Tensor) -> Tensor:
    """Rewards per token: the penalties, and each episode's score at one place of it.

    Args:
        penalties: (episodes, time) what each token costs, for example minus the KL coefficient times its KL.
        scores: (episodes,) rewards of whole responses.
        places: (episodes,) where they are given.
    """
    rewards = penalties.clone()
    rewards[torch.arange(len(scores), device=scores.device), places] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16).

    Args:
        rewards: (episodes, time), zero behind the end.
        values: (episodes, time) value of the state before each token, zero behind the end.
        gamma: Discount factor.
        lam: Weight of longer estimates.

    Returns:
        Advantages and returns (what the values should have been), both (episodes, time).
    """
    last = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(last)
    advantages = torch.zeros_like(values)
    for time in range(values.shape[1] - 1, -1, -1):
        surprise = rewards[:, time] + gamma * following - values[:, time]
        last = surprise + gamma * lam * last
        following = values[:, time]
        advantages[:, time] = last
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, total: Total = _alone) -> Tensor:
    """Scale the values under the mask to variance one, and shift them to mean zero; zero elsewhere.

    Args:
        values: Any shape.
        mask: Same shape, True where a value counts.
        shift_mean: Off keeps the mean.
        total: Sums over processes, so that all of them share one mean and one variance.
    """
    mask = mask.to(values.dtype)
    count, added = total(torch.stack([mask.sum(), (values * mask).sum()])).unbind()
    mean = added / count.clamp_min(1.0)
    squares = total((((values - mean) * mask) ** 2).sum())
    variance = squares / (count - 1.0).clamp_min(1.0)  # a single value has none
    scaled = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return (scaled if shift_mean else scaled + mean) * mask


def policy_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), token by token.

    Args:
        log_probs: Of the policy as it is now.
        old: Of the policy that sampled.
        advantages: How much better than expected each token was.
        cliprange: How far the ratio of probabilities may go from 1 to the policy's gain.

    Returns:
        Losses, and where the clipped one was the greater. Shapes as given.
    """
    ratio = torch.exp(log_probs - old)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(values: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, at least that of the values kept within ``cliprange`` of the old ones.

    Returns:
        Losses, and where the clipped one was the greater. Shapes as given.
    """
    plain = (values - returns) ** 2
    clipped = (torch.clamp(values, old - cliprange, old + cliprange) - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain
