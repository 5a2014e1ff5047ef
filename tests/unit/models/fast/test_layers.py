"""Fused norms and gated MLPs give what the modules' own operations give, and leave alone what they do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from rrm_lm.models.fast.layers import speed_up_layers

SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1}


def outputs(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's output, and the gradient of a weighted sum of it with respect to the input."""
    x = x.clone().requires_grad_(True)
    y = module(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize(
    "module",
    [
        LlamaRMSNorm(12),
        LlamaMLP(LlamaConfig(**SIZES)),
        Qwen3MLP(Qwen3Config(**SIZES)),
    ],
    ids=["norm", "llama mlp", "qwen mlp"],
)
def test_fused_equals_own_forward_and_backward(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    module.requires_grad_(False)
    x = 3 * torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    own = outputs(module, x)
    assert speed_up_layers(module) == 1
    assert "forward" in module.__dict__
    for mine, theirs in zip(outputs(module, x), own, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_norm_that_is_trained_keeps_its_gradient() -> None:
    norm = LlamaRMSNorm(12)
    speed_up_layers(norm)
    norm(torch.randn(3, 12)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize(
    "module",
    [
        Gemma3RMSNorm(12),
        Gemma3MLP(Gemma3TextConfig(**SIZES)),
        LlamaMLP(LlamaConfig(**SIZES, hidden_act="gelu")),
        LlamaRMSNorm(12).to(torch.bfloat16),
    ],
    ids=["gemma norm", "gemma mlp", "gelu", "bfloat16"],
)
def test_what_it_does_not_fit_is_left_alone(module: torch.nn.Module) -> None:
    assert speed_up_layers(module) == 0
    assert "forward" not in module.__dict__


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 1

    assert speed_up_layers(Shifted(12)) == 0
