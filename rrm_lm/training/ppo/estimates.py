"""PPO's tensors as pure functions: rewards per token, generalized advantages, whitening, losses.

Tensors are (episodes, time), where time counts response tokens up to the longest response. Positions after the end of a
response are masked. Masks are made from lengths, never from token ids.

Differences from TRL 1.12 (``trl_compatible`` selects TRL's variant, for comparisons):

- **Position of the reward.** Ours: the last token of the response, the action that earned it. TRL's: one position
  later, at the first pad, unless the response has the maximum length. That position has its own value, of the state
  after the last token, which TRL trains too (its second mask). So the last token's advantage comes from this
  prediction, not from the reward.
- **Averages.** Ours: over the tokens of the whole mini-batch on all processes. TRL's: over the tokens of a micro-batch,
  then over micro-batches, so a token weighs more among short responses.
- **Whitening.** Ours: mean and variance over all processes. TRL's: per process.
- **Optimizer steps.** Ours: one per mini-batch. TRL's: one per ``gradient_accumulation_steps`` micro-batches, so
  ``num_mini_batches`` has no effect there unless ``gradient_accumulation_steps`` is 1.
- **Gradient clipping.** Ours: at ``max_grad_norm``. TRL's PPO ignores it.
- **Logged means.** Ours: over tokens. TRL's: approximate KL and ratio also over padding and over unfilled entries of
  its statistics table.

Not reproduced: TRL's entropy over padding (it is noise), its masks from pad ids (a sampled pad token ends a response
there), and its single-micro-batch optimizer steps in the last batch of each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.processes import Total

_EPSILON = 1e-8  # added to a variance before its root, as in TRL


@dataclass(slots=True)
class Estimates:
    """Training targets of an update; all (episodes, width), zero after the end."""

    log_probs: Tensor  # log-probabilities of the sampled tokens, under the policy that sampled them
    values: Tensor  # value of the state before each token
    advantages: Tensor  # whitened advantage of each token
    returns: Tensor  # targets of the value function
    is_response: Tensor  # True at the tokens of each response
    is_valued: Tensor  # True where values are trained: the same, or with TRL's conventions one position more
    kl: Tensor  # estimated KL divergence from the reference at each token
    penalties: Tensor  # minus the KL coefficient times `kl`
    importance: Tensor | None = None  # weight of each token in the policy loss; None for 1


def estimate(
    args: PPOConfig,
    kl_coef: float,
    log_probs: Tensor,
    reference: Tensor,
    values: Tensor,
    end_values: Tensor,
    scores: Tensor,
    lengths: Tensor,
    total: Total,
) -> Estimates:
    """Estimate advantages and returns.

    Args:
        args: Selects the estimator, discounts, whitening and conventions.
        log_probs, reference: (episodes, width) log-probabilities of the sampled tokens, zero after the end.
        values: (episodes, width) value of the state before each token, zero after the end.
        end_values: (episodes,) value of the state after the last token.
        scores: (episodes,) rewards of the responses.
        lengths: (episodes,) tokens of each response.
    """
    width = log_probs.shape[1]
    is_response = is_valued = is_before(lengths, width)
    places = lengths - 1
    if args.trl_compatible:
        is_valued = is_before(lengths + 1, width)
        places = torch.where(lengths < width, lengths, places)
        values = with_ends(values, end_values, lengths)
        total = this_process
    kl = (kl_k1 if args.kl_estimator == "k1" else kl_k3)(log_probs, reference)
    penalties = -kl_coef * kl
    rewards = place_scores(penalties, scores, places)
    if args.whiten_rewards:
        rewards = whiten(rewards, is_valued, shift_mean=False, total=total)
    advantages, returns = gae(rewards, values, args.gamma, args.lam)
    advantages = whiten(advantages, is_response, total=total)
    return Estimates(log_probs, values, advantages, returns, is_response, is_valued, kl, penalties)


def with_ends(values: Tensor, end_values: Tensor, lengths: Tensor) -> Tensor:
    """Insert the value of the end state after each shorter response: (episodes, width)."""
    is_end = torch.arange(values.shape[1], device=values.device)[None, :] == lengths[:, None]
    return torch.where(is_end, end_values[:, None], values)


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


def importance_weights(log_probs: Tensor, served: Tensor, cap: float) -> Tensor:
    """Truncated importance weights ``min(p/q, cap)`` of tokens that were sampled with probability q (Espeholt et al.
    2018, arXiv 1802.01561, eq. 1). Shapes as given.
    """
    return torch.exp(log_probs - served).clamp_max(cap)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, or that of the values clipped to ``cliprange`` around the old ones, if it is larger.
    Returns losses, and a mask of where the clipped loss was larger. Shapes as given.
    """
    plain = (values - returns) ** 2
    clipped = (torch.clamp(values, old - cliprange, old + cliprange) - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain
