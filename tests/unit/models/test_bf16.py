"""A bfloat16 backbone, against float64 on the same hidden states: log-probabilities, entropies, rewards, gradients.

Bounds are in units of rounding: `U` is what one rounding to bfloat16 may change, relative to the number rounded, and
`U32` to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import token_log_probs
from rrm_lm.models.ensemble import COMBINATIONS
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.text.batching import Batch, collate
from rrm_lm.text.chat import Line
from tests.tiny import lora, some_comparisons, tiny_chat, tiny_config, tiny_model
from tests.tiny_policy import tiny_agent

U, U32 = torch.finfo(torch.bfloat16).eps / 2, torch.finfo(torch.float32).eps / 2
LIKELY = [0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-5, 1 - 1e-6]
WAYS = [Sampling(1), Sampling(1, temperature=0.7), Sampling(1, top_k=5)]
KINDS = ["plain", "autocast", "capped", "trained"]


# -- log-probabilities ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A hidden state, and the float64 answers from the same logits before they are capped, scaled and truncated."""

    backbone: Backbone
    context: Callable[[], Any]
    hidden: Tensor
    token: Tensor
    log_p: Tensor
    entropy: Tensor
    slope: Tensor
    terms: Tensor  # what the slope is the sum of, each without its sign
    largest: float  # logit after scaling


def head_of(kind: str) -> Backbone:
    model = tiny_model("gemma3", config=tiny_config("gemma3")) if kind == "capped" else tiny_model()
    model = model if kind == "autocast" else model.bfloat16()
    model.config.final_logit_softcapping = 100.0 if kind == "capped" else None
    model.get_output_embeddings().requires_grad_(kind == "trained")
    return Backbone(model, 0, sharing=False)


def case(kind: str, sampling: Sampling, likely: float, chosen: str = "likely") -> Case:
    """A hidden state after which one token has about the probability `likely`; the token is that one, or the next."""
    made = head_of(kind)
    head, cap = made.causal_lm.get_output_embeddings(), made.config.final_logit_softcapping
    weight = head.weight.detach().double()
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if kind == "autocast" else nullcontext

    def shaped(raw: Tensor) -> Tensor:
        return sampling.shape(raw if cap is None else cap * torch.tanh(raw / cap))

    scales = torch.linspace(0.0, 10.0, 2001)[:, None]  # of one token's weights, which make this token likely
    states = (scales * head.weight.detach().float()[7]).to(torch.float32 if kind == "autocast" else torch.bfloat16)
    with context(), torch.no_grad():
        unlikely = 1 - shaped(head(states).double()).softmax(-1).amax(-1)
        hidden = states[[int((unlikely / (1 - likely)).log().abs().argmin())]]
        raw = head(hidden).double()
    raw.requires_grad_()
    logits = shaped(raw)
    log_probs = logits.log_softmax(-1)
    token = log_probs.topk(2).indices[:, 0 if chosen == "likely" else 1]
    log_p = log_probs[0, token]
    (d,) = torch.autograd.grad(log_p.sum(), raw)
    entropy = torch.special.entr(log_probs.detach().exp()).sum(-1)
    largest = float(logits.detach()[logits.isfinite()].abs().max())
    return Case(made, context, hidden, token, log_p.detach(), entropy, d @ weight, d.abs() @ weight.abs(), largest)


@pytest.mark.parametrize("chosen", ["likely", "next"])
@pytest.mark.parametrize("likely", LIKELY)
@pytest.mark.parametrize("sampling", WAYS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_their_slopes(kind: str, sampling: Sampling, likely: float, chosen: str) -> None:
    """Logits are rounded to bfloat16 once, where the head gives them; from there to the slope nothing else is."""
    c = case(kind, sampling, likely, chosen)
    assert 0.25 < (1 - float(c.log_p.exp())) / (1 - likely) < 4 or chosen == "next"
    hidden = c.hidden.clone().requires_grad_()
    with c.context():
        log_p, entropy = token_log_probs(c.backbone, hidden, c.token, sampling)
    log_p.sum().backward()
    assert log_p.dtype == entropy.dtype == torch.float32 and hidden.grad is not None
    # The largest logit is subtracted from others, and log p is rounded.
    assert float((log_p.detach() - c.log_p).abs()) <= 8 * U32 * (c.largest + float(c.log_p.abs()))
    assert float((entropy - c.entropy).abs()) <= 8 * U32 * c.largest * (1 + float(c.entropy))
    # Three roundings: of each term's factor, of their sum, and of that divided by the temperature.
    excess = (hidden.grad - c.slope).abs() / c.terms
    assert float(excess.max()) <= 3 * U, (float(c.slope.abs().max()), float(excess.max()))


@pytest.mark.parametrize("likely", LIKELY)
@pytest.mark.parametrize("sampling", WAYS, ids=str)
def test_without_gradients_a_small_log_probability_keeps_its_digits(sampling: Sampling, likely: float) -> None:
    c = case("plain", sampling, likely)
    with torch.no_grad():
        log_p, _ = token_log_probs(c.backbone, c.hidden, c.token, sampling)
    assert float((log_p / c.log_p - 1).abs()) <= 8 * U32 * c.largest


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likely", LIKELY)
def test_critiques(likely: float) -> None:
    """Their loss is cross-entropy in float32; its slope is 1 - p in float32, with three roundings to bfloat16."""
    c = case("plain", Sampling(1), likely)
    model = RewardModel.create(c.backbone, lora(), RewardSettings("tiny"))
    hidden = c.hidden.clone().requires_grad_()
    nll = model._token_nll(hidden, c.token)
    nll.sum().backward()
    assert nll.dtype == torch.float32 and hidden.grad is not None
    assert float((nll.detach() + c.log_p).abs()) <= 8 * U32 * (1 + float(c.log_p.abs()))
    excess = (hidden.grad + c.slope).abs() - 3 * U * c.terms
    assert float((excess / c.backbone.causal_lm.get_output_embeddings().weight.abs().sum(0)).max()) <= 2 * U32


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_rewards(autocast: bool, combine: str) -> None:
    """Hidden states are in bfloat16; the heads and what becomes of their rewards are in float32."""
    settings = RewardSettings("tiny", ensemble_heads=3, ensemble=combine)
    model = RewardModel.create(Backbone(tiny_model().bfloat16(), 0, sharing=False), lora(), settings)
    batch, lines = batch_of(model.backbone)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(batch, lines)
        hidden = model.backbone(batch, model.adapter)
    ends = torch.stack([hidden[batch.at(number, line.reward_at)] for number, line in enumerate(lines)]).detach()
    weight = model.head.weight.detach()
    bound = float(len(ends[0]) * U32 * (ends.double().abs() @ weight.double().abs().T).max())
    members = ends.double() @ weight.double().T
    assert output.rewards.dtype == output.members.dtype == torch.float32 and ends.dtype == torch.bfloat16
    assert float((output.members - members).detach().abs().max()) <= bound
    assert float((output.rewards - settings.combination(members)).detach().abs().max()) <= 4 * bound


@pytest.mark.parametrize("value", ["head", "adapter"])
@pytest.mark.parametrize("autocast", [False, True])
def test_values_and_the_kl_divergence(autocast: bool, value: str) -> None:
    """The policy as it starts is its reference: float32 roundings of its logits are all that is between them."""
    agent = tiny_agent(value=value, random=False)
    for name, parameter in agent.backbone.named_parameters():  # adapters stay in float32, as PEFT has them
        parameter.data = parameter.data if "lora_" in name else parameter.data.bfloat16()
    batch, lines = batch_of(agent.backbone)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        policy = agent("policy", batch, lines, Sampling(1))
        reference = agent("reference", batch, lines, Sampling(1))
        hidden = agent.backbone(batch, agent.policy_adapter if value == "head" else "value")
    assert {tensor.dtype for tensor in (*policy, reference)} == {torch.float32}
    largest = float(agent.backbone.logits(hidden).detach().abs().max())
    assert float((policy.log_probs - reference).detach().abs().max()) <= 16 * U32 * largest
    ends = torch.stack([hidden[batch.at(number, len(line.ids) - 1)] for number, line in enumerate(lines)])
    weight, bias = (p.detach().double() for p in agent.value_head.parameters())
    expected = (ends.detach().double() @ weight.T + bias).squeeze(-1)
    assert float((policy.end_values - expected).detach().abs().max()) <= 64 * U32 * float(ends.detach().abs().max())


def batch_of(backbone: Backbone) -> tuple[Batch, list[Line]]:
    groups = [tiny_chat().encode(c.prompt, [c.chosen, c.rejected]).lines for c in some_comparisons(3)]
    lines = [line for group in groups for (line,) in group]
    return collate([row for line in lines for row in backbone.rows([line.ids])], backbone.pad_id), lines
