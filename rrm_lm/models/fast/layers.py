"""Fewer passes over memory in the layers between the matrix products; the same numbers to rounding.

Written out operation by operation, a root-mean-square norm or a gated MLP passes over its tensors several times more
than needed, forward and backward, and keeps more of them. One autograd function each keeps one tensor, and two. Which
modules these fit is not guessed from their class: each kind is tried on random numbers first, and left alone if it
differs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_PROBE_TOLERANCE = 1e-5


class _RmsNorm(torch.autograd.Function):
    """``weight * x / sqrt(mean(x^2) + eps)`` with a frozen weight (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normal, inverse, weight = ctx.saved_tensors
        scaled = grads[0] * weight
        along = torch.linalg.vecdot(scaled, normal).unsqueeze(-1).div_(normal.shape[-1])
        return scaled.addcmul_(normal, along, value=-1.0).mul_(inverse), None, None


class _SwiGlu(torch.autograd.Function):
    """``silu(gate) * up`` (Shazeer 2020, arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        open_ = torch.sigmoid(gate)
        passed = gate * open_
        grad_up = grads[0] * passed
        # d silu / d gate = open + passed (1 - open), in place over tensors that are no longer needed
        slope = passed.mul_(1.0 - open_).add_(open_)
        return slope.mul_(up).mul_(grads[0]), grad_up


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    weight = module.weight
    if x.dtype != weight.dtype or weight.requires_grad or torch.is_autocast_enabled(x.device.type):
        return type(module).forward(module, x)
    return _RmsNorm.apply(x, weight, module.variance_epsilon)  # type: ignore[return-value]


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(_SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))


def speed_up_layers(model: nn.Module, like: nn.Module | None = None) -> int:
    """Give norms and gated MLPs of a frozen fp32 model the fused computation, where it fits.

    Args:
        model: The model.
        like: A model of the same family that was sped up: the kinds of layers that fitted there are taken to fit here,
            and no other. For models without weights, on which nothing can be tried.

    Returns:
        How many modules were changed.
    """
    fits: dict[tuple[type, str], bool] = {} if like is None else _fitting(like)
    changed = 0
    for module in model.modules():
        forward = _fused(module)
        if forward is None:
            continue
        key = (type(module), forward.__name__)
        if key not in fits:
            fits[key] = like is None and _agrees(module, forward)
        if fits[key]:
            module.forward = MethodType(forward, module)
            changed += 1
    return changed


def _fitting(model: nn.Module) -> dict[tuple[type, str], bool]:
    """The kinds of layers that were sped up in a model."""
    names = (_norm_forward.__name__, _mlp_forward.__name__)
    found = ((type(module), getattr(module.__dict__.get("forward"), "__name__", "")) for module in model.modules())
    return {key: True for key in found if key[1] in names}


def _fused(module: Any) -> Any:
    weight = getattr(module, "weight", None)
    if hasattr(module, "variance_epsilon") and isinstance(weight, Tensor) and weight.dim() == 1:
        return _norm_forward if weight.dtype == torch.float32 else None
    if all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")):
        act = getattr(module, "act_fn", None)
        return _mlp_forward if isinstance(act, nn.Module) and "silu" in type(act).__name__.lower() else None
    return None


@torch.no_grad()
def _agrees(module: Any, forward: Any) -> bool:
    """Whether the fused forward pass gives what the module's own gives, on random numbers."""
    some = next(module.parameters())
    size = some.shape[0] if forward is _norm_forward else module.gate_proj.in_features
    x = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0)).to(device=some.device, dtype=torch.float32)
    if some.dtype != torch.float32:
        return False
    try:
        own = type(module).forward(module, x)
        is_norm = forward is _norm_forward  # called as it is, it would leave a norm that is trained to the module
        ours = _RmsNorm.apply(x, module.weight, module.variance_epsilon) if is_norm else forward(module, x)
    except (RuntimeError, TypeError, AttributeError):
        return False
    assert isinstance(ours, Tensor)
    return bool((own - ours).abs().max() <= _PROBE_TOLERANCE * own.abs().max().clamp_min(1e-6))
