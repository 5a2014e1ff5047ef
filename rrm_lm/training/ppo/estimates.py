"""From scores to advantages: rewards per token, generalized advantages, whitening, and differences from TRL.

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
from rrm_lm.training.ppo.losses import gae, is_before, kl_k1, kl_k3, place_scores, this_process, whiten
from rrm_lm.training.processes import Total


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
