"""Less memory traffic for the layers that adapters sit on; the same numbers to rounding.

A LoRA layer written out operation by operation makes three extra passes over an output-sized tensor (B's product, its
scaling, the sum), forward and backward, and keeps two of them, which on a CPU costs time. One autograd function per
layer accumulates into the product instead.

Layers it does not fit (dropout that is on, DoRA, quantised or trainable weights, mixed precision, several active
adapters) take PEFT's own path, call by call.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + s (x A^T) B^T`` with a frozen W (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_a = grad_low.t() @ flat if ctx.needs_input_grad[3] else None
        grad_b = (grad.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(*grads[0].shape[:-1], weight.shape[1])
        return grad_x, None, None, grad_a, grad_b, None


def _forward(layer: PeftLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or layer.disable_adapters or layer.merged or len(active) != 1:
        return type(layer).forward(layer, x, *args, **kwargs)
    name = active[0]
    base = layer.base_layer
    dropout = layer.lora_dropout[name]
    drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and layer.training
    a, b = layer.lora_A[name], layer.lora_B[name]
    weight = base.weight
    plain = type(base) is nn.Linear and name not in layer.lora_variant and a.bias is None and b.bias is None
    same = x.dtype == weight.dtype == a.weight.dtype and not torch.is_autocast_enabled(x.device.type)
    frozen = not weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    if drops or not plain or not same or not frozen:
        return type(layer).forward(layer, x)
    return _LoraLinear.apply(x, weight, base.bias, a.weight, b.weight, layer.scaling[name])  # type: ignore[return-value]


def speed_up(model: nn.Module) -> int:
    """Give every plain LoRA linear layer of a model the fused computation.

    Returns:
        How many layers were changed.
    """
    count = 0
    for module in model.modules():
        if type(module) is PeftLinear:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
            count += 1
    return count
