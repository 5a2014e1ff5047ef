"""A decoder for Llama-like layers with less overhead than the model's own code. Most families have such layers.

Results are equal up to rounding. Products with the same input are fused, residuals are added inside products, the
queries of a group share its keys without copies, and module calls, hooks and unneeded masks are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.key_values import KeyValues, positions, visible
from rrm_lm.models.decoding.products import Adapted, Product, merged_weight
from rrm_lm.text.batching import window_of

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PARTS = {
    "self_attn": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}),
    "mlp": ({"gate_proj", "up_proj", "down_proj"}, {"act_fn"}),
}


@dataclass(slots=True)
class _Block:
    """The parts of one layer. Products with the same input are fused."""

    norm: Any
    qkv: Product | Adapted
    q_norm: Any
    k_norm: Any
    out: Product | Adapted
    mlp_norm: Any
    gate_up: Product | Adapted
    act: Any
    down: Product | Adapted
    window: int | None
    scaling: float


class LeanDecoder:
    """Llama-like layers: norm, grouped-query attention with rotary positions, norm, gated MLP.

    The weights are copied, those with the same input concatenated, the adapter merged into the copies, and these packed
    for oneDNN if `packed`; where merging would lose bits, the model's own weights are used and the adapter is computed
    apart (see :mod:`rrm_lm.models.decoding.products`). Raises TypeError: the model has other layers or adapters.
    """

    def __init__(self, backbone: Backbone, adapter: str | None, packed: bool) -> None:
        decoder, config = backbone.decoder, backbone.config
        self.embed, self.rotary, self.last_norm = decoder.embed_tokens, decoder.rotary_emb, _norm(decoder.norm)
        kinds = getattr(config, "layer_types", None) or [None] * len(decoder.layers)
        window = window_of(config)
        self.heads = int(config.num_attention_heads)
        self.groups = int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.blocks = [
            _block(layer, adapter, packed, window if kind in (None, "sliding_attention") else None)
            for layer, kind in zip(decoder.layers, kinds, strict=True)
        ]

    def __call__(self, ids: Tensor, starts: Tensor, cache: KeyValues) -> Tensor:
        """(rows, tokens) ids at the cache's position and (rows,) starts -> (rows, tokens, hidden)."""
        rows, length = ids.shape
        hidden = self.embed(ids)
        cos, sin = (
            part.unsqueeze(2).to(hidden.dtype) for part in self.rotary(hidden, positions(cache, starts, length))
        )
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        masks: dict[int | None, Tensor | None] = {}
        hidden = hidden.view(rows * length, -1)
        for index, block in enumerate(self.blocks):
            if block.window not in masks:
                masks[block.window] = self._mask(cache, starts, length, block.window, hidden.dtype)
            qkv = block.qkv(block.norm(hidden)).view(rows, length, self.heads + 2 * self.groups, -1)
            mixed = self._attend(block, qkv, cos, sin, cache, index, masks[block.window])
            hidden = block.out.add_to(hidden, mixed.reshape(rows * length, -1))
            gate, up = block.gate_up(block.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = block.down.add_to(hidden, block.act(gate).mul_(up))
        return self.last_norm(hidden).view(rows, length, -1)

    def _attend(
        self, block: _Block, qkv: Tensor, cos: Tensor, sin: Tensor, cache: KeyValues, index: int, mask: Tensor | None
    ) -> Tensor:
        """Queries, keys and values (rows, tokens, heads + 2 groups, size) -> attention output of each head."""
        rows, length, _, size = qkv.shape
        turned = qkv[:, :, : self.heads + self.groups]
        if block.q_norm is not None:
            turned = torch.cat((block.q_norm(turned[:, :, : self.heads]), block.k_norm(turned[:, :, self.heads :])), 2)
        # cos x + sin rotate_half(x): the halves of x are swapped, and sin carries the sign
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
        keys, values = cache.update(
            turned[:, :, self.heads :].transpose(1, 2), qkv[:, :, self.heads + self.groups :].transpose(1, 2), index
        )
        shared = self.heads // self.groups
        attend = nn.functional.scaled_dot_product_attention
        if length == 1:  # a group's queries are treated as tokens, since all see the same keys
            queries = turned[:, 0, : self.heads].view(rows, self.groups, shared, size)
            return attend(queries, keys, values, attn_mask=mask, scale=block.scaling)
        queries = turned[:, :, : self.heads].transpose(1, 2)
        if shared > 1:
            keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
        mixed = attend(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=block.scaling)
        return mixed.transpose(1, 2)

    def _mask(
        self, cache: KeyValues, starts: Tensor, length: int, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        """The additive mask; ``None`` if causal attention over all keys is correct."""
        keys = cache.column - cache.low + length
        within = window is None or keys <= window
        if cache.high == cache.low and within and (length == 1 or keys == length):
            return None
        seen = visible(cache, starts, length, window)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))


def _block(layer: Any, adapter: str | None, packed: bool, window: int | None) -> _Block:
    if {name for name, _ in layer.named_children()} != _LAYER:
        raise TypeError("other layers")
    for name, (needed, possible) in _PARTS.items():
        parts = {part for part, _ in getattr(layer, name).named_children()}
        if not needed <= parts <= needed | possible:
            raise TypeError(f"another {name}")
    attention, mlp = layer.self_attn, layer.mlp
    return _Block(
        norm=_norm(layer.input_layernorm),
        qkv=_joined((attention.q_proj, attention.k_proj, attention.v_proj), adapter, packed),
        q_norm=_norm(getattr(attention, "q_norm", None)),
        k_norm=_norm(getattr(attention, "k_norm", None)),
        out=_joined((attention.o_proj,), adapter, packed),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_joined((mlp.gate_proj, mlp.up_proj), adapter, packed),
        act=mlp.act_fn,
        down=_joined((mlp.down_proj,), adapter, packed),
        window=window,
        scaling=float(attention.scaling),
    )


def _norm(module: Any) -> Any:
    """An RMS norm as one operation; other modules are returned unchanged."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or eps is None:
        return module
    return partial(nn.functional.rms_norm, normalized_shape=tuple(weight.shape), weight=weight, eps=eps)


def _joined(modules: Sequence[nn.Module], adapter: str | None, packed: bool) -> Product | Adapted:
    """Fuse several linear layers that have the same input."""
    found = [merged_weight(module, adapter) for module in modules]
    parts = [part for part in found if part is not None]
    if len(parts) != len(modules) and adapter is not None:
        return Adapted(modules, adapter)
    biases = [bias for _, bias in parts if bias is not None]
    if len(parts) != len(modules) or len(biases) not in (0, len(parts)):
        raise TypeError("a layer that is not linear, or biases in some layers only")
    if len(parts) == 1:
        return Product(*parts[0], packed)
    return Product(torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None, packed)
