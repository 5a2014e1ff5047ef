"""The matrix products of a rollout: copies of the weights with the adapter merged in, packed for few rows.

A rollout multiplies the same weights by a few rows hundreds of times. On CPUs, MKL repacks the weights in every
product, which takes half of the time or more (fp32, 16 rows). Here they are packed once, for oneDNN. The model's own
weights do not change.

An adapter in float32 on weights of fewer bits (bfloat16, 4 bit) would lose most of itself in their sum. It stays apart
there, and layers with the same input compute their adapters together (:class:`Adapted`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_EXACT = (torch.float32, torch.float64)  # with fewer bits, the sum of weight and adapter would lose most of the adapter


class Product:
    """``x W^T + bias``: weight (out, in), perhaps packed for oneDNN (see :func:`can_pack`), and bias (out,) or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: bool) -> None:
        self.packed = packed
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if packed else weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return nn.functional.linear(x, self.weight, self.bias)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """(n, out) and (n, in) -> (n, out): the sum of `total`, which may be overwritten, and the product."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, total, self.weight, self.bias, "add")
        if self.bias is not None:
            total = total + self.bias
        return total.addmm_(x, self.weight.t())


def can_pack(weight: Tensor) -> bool:
    """Whether weights of this kind can be packed for oneDNN; tested with a small product."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    some, x = torch.randn(24, 16, generator=generator), torch.randn(3, 16, generator=generator)
    bias, total = torch.randn(24, generator=generator), torch.randn(3, 24, generator=generator)
    expected = nn.functional.linear(x, some, bias)
    try:
        product = Product(some, bias, packed=True)
        pairs = ((product(x), expected), (product.add_to(total.clone(), x), total + expected))
    except (RuntimeError, AttributeError, TypeError):  # these operators are internal to torch
        return False
    return all(torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4) for mine, theirs in pairs)


def merged_weight(module: nn.Module, adapter: str | None) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a linear layer with an adapter merged in. Read-only: they may alias the layer's.
    None for an unknown kind of layer, or if the adapter cannot be merged without loss.
    """
    base = _without_adapter(module)
    if type(base) not in (nn.Linear, Conv1D):
        return None
    weight = base.weight.t() if type(base) is Conv1D else base.weight
    if not isinstance(module, BaseTunerLayer):
        return weight, base.bias
    if type(module) is not PeftLinear or module.merged:
        return None
    if adapter is None or adapter not in module.lora_A:
        return weight, base.bias
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    if not _is_plain(module, adapter) or weight.dtype not in _EXACT or a.weight.dtype != weight.dtype:
        return None
    return torch.addmm(weight, b.weight, a.weight, alpha=module.scaling[adapter]), base.bias


class Adapted:
    """Linear layers with the same input and an adapter that is not merged into their weights: their outputs, joined.

    The sum of layer and adapter is rounded once, as PEFT does; only the order of float32 sums differs. Raises
    TypeError: a layer that is not linear, or an adapter that is more than two matrices.
    """

    def __init__(self, modules: Sequence[nn.Module], adapter: str) -> None:
        self.bases = [_without_adapter(module) for module in modules]
        found = [_low_rank(module, adapter) for module in modules]
        self.a = torch.cat([a for a, _ in found])  # (ranks, in)
        self.b = torch.block_diag(*(b for _, b in found))  # (out, ranks)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        outputs = [base(x) for base in self.bases]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        low = nn.functional.linear(nn.functional.linear(x.to(self.a.dtype), self.a), self.b)
        return (joined + low).to(joined.dtype)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """(n, out) and (n, in) -> (n, out): the sum of `total` and the outputs."""
        return total + self(x)


def _without_adapter(module: nn.Module) -> Any:
    return module.base_layer if isinstance(module, BaseTunerLayer) else module


def _low_rank(module: nn.Module, adapter: str) -> tuple[Tensor, Tensor]:
    """An adapter's factors (rank, in) and (out, rank), the second scaled. The rank is 0 for a layer without it."""
    base, layer = _without_adapter(module), cast(Any, module)
    if not isinstance(base, nn.Linear):
        raise TypeError("a layer that is not linear")
    if base is module or adapter not in layer.lora_A:
        device = base.weight.device
        return torch.empty(0, base.in_features, device=device), torch.empty(base.out_features, 0, device=device)
    if layer.merged or not _is_plain(layer, adapter):
        raise TypeError("an adapter that is more than two matrices, or merged")
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight * layer.scaling[adapter]


def _is_plain(module: Any, adapter: str) -> bool:
    """Whether an adapter of a layer is the product of two matrices."""
    unbiased = module.lora_A[adapter].bias is None and module.lora_B[adapter].bias is None
    return unbiased and adapter not in module.lora_variant


def products_of(model: nn.Module, adapter: str | None, packed: bool) -> dict[nn.Module, Product]:
    """Products for all linear layers that have the adapter or can be packed."""
    made: dict[nn.Module, Product] = {}
    covered: set[nn.Module] = set()
    for module in model.modules():
        if module not in covered and (packed or isinstance(module, BaseTunerLayer)):
            found = merged_weight(module, adapter)
            if found is not None:
                made[module] = Product(*found, packed)
                covered.update(module.modules())
    return made


@contextmanager
def computing_with(products: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Replace modules' forward functions inside a ``with`` block."""
    own = {module: module.__dict__.get("forward") for module in products}
    try:
        for module, product in products.items():
            module.forward = product
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
