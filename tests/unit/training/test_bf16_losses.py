"""Losses, KL divergences and advantages behind a bfloat16 backbone, against float64 on the same numbers.

Rewards, log-probabilities and values leave the model in float32 (see tests/unit/models/test_bf16.py). `U32` is
what one rounding to float32 may change, relative to the number that is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import POLICY, Policy
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.estimates import estimate, kl_k1, kl_k3, policy_losses, value_losses, whiten
from rrm_lm.training.reward.losses import bradley_terry, centering, graded_target, rating_regression
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from tests.tiny import lora, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting

U32 = torch.finfo(torch.float32).eps / 2
LIKELY = [0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-5, 1 - 1e-6]


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def both(function: Callable[..., Tensor], *numbers: Tensor | float) -> tuple[Tensor, Tensor]:
    """(values and gradients in float32, the same in float64) of numbers that bfloat16 can hold."""
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [torch.as_tensor(n, dtype=torch.bfloat16).to(dtype).reshape(-1).requires_grad_() for n in numbers]
        values = function(*inputs)
        gradients = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
        assert values.dtype == dtype
        found.append(
            torch.cat([part.reshape(-1).double() for part in (values, *gradients) if part is not None]).detach()
        )
    return found[0], found[1]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "preference": bradley_terry,
    "with margin": lambda a, b: bradley_terry(a, b, shift=0.5),
    "soft": lambda a, b: bradley_terry(a, b, target=0.75),
    "smoothed": lambda a, b: bradley_terry(a, b, label_smoothing=0.1),
    "graded": lambda a, b: bradley_terry(a, b, target=graded_target(a - b)),
    "centred": centering,
    "rated 1": lambda a, b: rating_regression(a - b, torch.ones_like(a)),
    "rated 0.25": lambda a, b: rating_regression(a - b, torch.full_like(a, 0.25)),
    "rated 0": lambda a, b: rating_regression(a - b, torch.zeros_like(a)),
}


@pytest.mark.parametrize("sign", [1, -1], ids=["right", "wrong"])
@pytest.mark.parametrize("likely", LIKELY)
@pytest.mark.parametrize("name", LOSSES)
def test_reward_losses(name: str, likely: float, sign: int) -> None:
    """A loss of 1e-6 keeps its digits, and so does its gradient; rounding a margin m changes exp(m) by m U32 of it.

    Where a label is not certain, the loss has two terms, and its gradient is their difference.
    """
    chosen = torch.tensor(sign * (logit(likely) / 2 + 0.25))
    found, exact = both(LOSSES[name], chosen, chosen - sign * logit(likely))
    bound = 8 * U32 * (abs(logit(likely)) + 1)
    certain = name in ("preference", "with margin", "centred", "rated 1", "rated 0")
    assert float(((found - exact).abs() - bound * exact.abs()).max()) <= (1e-12 if certain else bound)


@pytest.mark.parametrize("ratio", [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, -1e-4, -0.01, -1.0])
@pytest.mark.parametrize("likely", LIKELY)
def test_kl_divergences(likely: float, ratio: float) -> None:
    """k3 is about r^2 / 2 for a log-ratio r, of which a rounding of r itself leaves a relative error of U32 / r."""
    log_p = torch.tensor([math.log(likely)])
    reference = log_p - ratio
    exact_p, exact_q = log_p.double(), reference.double()
    r = float((exact_q - exact_p).abs())
    rounded = U32 * max(r, 1e-45)  # of the difference
    assert float((kl_k1(log_p, reference) - (exact_p - exact_q)).abs()) <= 2 * rounded
    expected = kl_k3(exact_p, exact_q)
    assert float((kl_k3(log_p, reference) - expected).abs()) <= 4 * rounded * math.exp(max(0.0, -ratio))
    assert float((kl_k3(log_p, reference) / expected - 1).abs()) <= 16 * U32 / min(1.0, r)


@pytest.mark.parametrize("likely", LIKELY)
def test_ppo_losses(likely: float) -> None:
    """Old and new log-probabilities in float32; their difference is what counts, and is exact where they are near."""
    generator = torch.Generator().manual_seed(0)
    old = torch.full((8,), math.log(likely))
    new = old * (1 + 0.5 * torch.rand(8, generator=generator)) + 0.1 * torch.randn(8, generator=generator)
    advantages, old_values = 5 * torch.randn(2, 8, generator=generator)
    found = [
        policy_losses(*(t.to(d) for t in (new, old, advantages)), cliprange=0.2) for d in (torch.float32, torch.float64)
    ]
    assert torch.equal(found[0][1], found[1][1])
    assert float((found[0][0] / found[1][0] - 1).abs().max()) <= 8 * U32
    values, returns = (old_values + 0.3 * torch.randn(2, 8, generator=generator)).unbind()
    found = [
        value_losses(*(t.to(d) for t in (values, old_values, returns)), cliprange=0.2)
        for d in (torch.float32, torch.float64)
    ]
    scale = float(values.abs().max() + returns.abs().max()) ** 2
    assert float((found[0][0] - found[1][0]).abs().max()) <= 4 * U32 * scale


@pytest.mark.parametrize("kl_estimator", ["k1", "k3"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_advantages(offset: float, kl_estimator: Any, tmp_path: Any) -> None:
    """64 tokens with gamma 1: a sum of as many roundings of the largest return, and then divided by the deviation."""
    generator = torch.Generator().manual_seed(0)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, kl_estimator=kl_estimator, whiten_rewards=False)
    log_probs, reference = torch.rand(2, 16, 64, generator=generator).mul(-1).bfloat16().float()
    values, scores = torch.randn(16, 64, generator=generator), torch.randn(16, generator=generator) + offset
    lengths = torch.randint(1, 65, (16,), generator=generator)
    lengths[0] = 64
    numbers = (log_probs, reference, values.bfloat16().float() + offset, torch.zeros(16), scores.bfloat16().float())
    mask = torch.arange(64) < lengths[:, None]
    numbers = tuple(n * mask if n.ndim == 2 else n for n in numbers)
    found, exact = (
        estimate(args, 0.05, *(n.to(d) for n in numbers), lengths=lengths, total=lambda tensor: tensor)
        for d in (torch.float32, torch.float64)
    )
    largest = float(exact.returns.abs().max())
    assert float((found.returns - exact.returns).abs().max()) <= 64 * U32 * largest
    assert float((found.advantages - exact.advantages).abs().max()) <= 128 * U32 * (largest + 1)
    assert float((found.kl - exact.kl).abs().max()) <= 4 * U32


def test_whitening_of_rewards_far_from_zero() -> None:
    rewards = (1000 + torch.randn(512, generator=torch.Generator().manual_seed(0))).float()
    mask = torch.ones(512, dtype=torch.bool)
    for shift in (True, False):
        found, exact = (whiten(rewards.to(d), mask, shift_mean=shift) for d in (torch.float32, torch.float64))
        assert float((found - exact).abs().max()) <= 8 * U32 * 1000


def test_log_probabilities_of_rloo(tmp_path: Path) -> None:
    """TRL's trainer computes in the dtype of the logits: in bfloat16 the sum over a response would lose its digits."""
    backbone = Backbone(tiny_model(dtype=torch.bfloat16), pad_id=0)
    backbone.add_adapter(POLICY, lora())
    settings = config(tmp_path, samples_per_prompt=2)
    made = RLOOTrainer(Policy(backbone, CHAT, POLICY), settings, RewardSum([PythonReward(counting)]), PROMPTS)
    ids = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    found, entropy, _ = made._get_per_token_logps_and_entropies(
        made.model, ids, torch.ones_like(ids), 50, compute_entropy=True
    )
    logits: Tensor = backbone.model(input_ids=ids).logits[:, -51:-1].detach()
    exact = logits.double().log_softmax(-1)
    log_p = exact.gather(-1, ids[:, -50:, None]).squeeze(-1)
    assert logits.dtype == torch.bfloat16 and found.dtype == entropy.dtype == torch.float32
    assert float((found.detach() - log_p).abs().max()) <= 8 * U32 * float(logits.abs().max())
    assert float((found.detach().sum(1) - log_p.sum(1)).abs().max()) <= 64 * U32 * float(log_p.sum(1).abs().max())
    assert float((entropy - torch.special.entr(exact.exp()).sum(-1)).abs().max()) <= 32 * U32 * float(
        logits.abs().max()
    )
