"""From scores to advantages: rewards per token, generalised advantages, whitening; and what TRL does otherwise.

Where we differ from TRL 1.12, and why (``trl_compatible`` brings TRL's way back, for comparing):

- **Where the reward lands.** Ours: on the last token of the response, which is the action that earned it. TRL's: one
  place behind it, on the first pad, unless the response fills its length. That place has a value of its own, the
  state after the last token, which TRL trains as well (its second mask), so that the last token's advantage is what
  this value expects, not what the response earned.
- **What is averaged.** Ours: over the tokens of the whole minibatch on all processes. TRL's: over the tokens of each
  micro-batch, then over micro-batches, so that a token counts more beside short responses.
- **Whitening.** Ours: one mean and variance over all processes. TRL's: each process its own.
- **Optimizer steps.** Ours: one per minibatch. TRL's: one per ``gradient_accumulation_steps`` micro-batches, so that
  ``num_mini_batches`` has no effect there unless ``gradient_accumulation_steps`` is 1.
- **Gradient clipping.** Ours: at ``max_grad_norm``. TRL's PPO ignores it.
- **Logged means.** Ours: over tokens. TRL's: approximate KL and ratio over padding, too, and over places of its table
  that were never filled.

Not brought back: TRL's entropy over padded places (it is noise), its masks from pad ids (a sampled pad token ends a
response there), and that the last batch of each pass over the data takes one optimizer step per micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.losses import gae, is_before, kl_k1, kl_k3, place_scores, whiten
from rrm_lm.training.processes import Total


@dataclass(slots=True)
class Estimates:
    """What an update learns from; all (episodes, width), zero behind the end.

    Attributes:
        log_probs: Of the sampled tokens, under the policy that sampled them.
        values: Of the state before each token.
        advantages: How much better than expected each token was, whitened.
        returns: What the values should have been.
        is_response: True at the tokens of each response.
        is_valued: True where values are trained; the same, or TRL's one place more.
        kl: KL divergence to the reference at each token, as estimated.
        penalties: What it costs.
    """

    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    is_response: Tensor
    is_valued: Tensor
    kl: Tensor
    penalties: Tensor


def with_ends(values: Tensor, end_values: Tensor, lengths: Tensor) -> Tensor:
    """(episodes, width) values, and behind those of responses that are shorter, the value of the state at their end."""
    return torch.where(_is_end(values, lengths), end_values[:, None], values)


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
    """Advantages and returns of some episodes.

    Args:
        args: Estimator, discounts, whitening, and whose conventions.
        kl_coef: Cost of a nat.
        log_probs, reference: (episodes, width) of the sampled tokens, zero behind the end.
        values: (episodes, width) of the state before each token, zero behind the end.
        end_values: (episodes,) of the state behind the last token.
        scores: (episodes,) what each response earned.
        lengths: (episodes,) tokens of each response.
        total: Sums over processes.
    """
    width = log_probs.shape[1]
    is_response = is_valued = is_before(lengths, width)
    places = lengths - 1
    if args.trl_compatible:
        is_valued = is_before(lengths + 1, width)
        places = torch.where(lengths < width, lengths, places)
        values = with_ends(values, end_values, lengths)
        total = _local
    kl = (kl_k1 if args.kl_estimator == "k1" else kl_k3)(log_probs, reference)
    penalties = -kl_coef * kl
    rewards = place_scores(penalties, scores, places)
    if args.whiten_rewards:
        rewards = whiten(rewards, is_valued, shift_mean=False, total=total)
    advantages, returns = gae(rewards, values, args.gamma, args.lam)
    advantages = whiten(advantages, is_response, total=total)
    return Estimates(log_probs, values, advantages, returns, is_response, is_valued, kl, penalties)


def _is_end(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(values.shape[1], device=values.device)[None, :] == lengths[:, None]


def _local(tensor: Tensor) -> Tensor:
    return tensor
