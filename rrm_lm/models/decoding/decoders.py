"""Decoders compute the next tokens of a rollout: the model's own code with our cache, or `LeanDecoder`.

Both map token ids at the same columns of all rows (see `key_values.py`) to hidden states. Each is compared once with
the model's uncached forward pass, and used only if the results agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone, difference
from rrm_lm.models.decoding.key_values import KeyValues, cache_name, positions, real_keys, visible
from rrm_lm.models.decoding.lean_decoder import LeanDecoder
from rrm_lm.models.decoding.products import Product, can_pack, computing_with, products_of
from rrm_lm.models.sharding import is_shard, max_over_processes
from rrm_lm.text.batching import by_layer_type, to_additive

logger = logging.getLogger(__name__)

# (rows, tokens) ids at the cache's position and (rows,) starts -> (rows, tokens, hidden)
Decoder = Callable[[Tensor, Tensor, KeyValues], Tensor]

_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError)

_agreeing: WeakKeyDictionary[Backbone, dict[str, bool]] = WeakKeyDictionary()  # which decoders work for a model


class WholeDecoder:
    """The model's own code, with our cache and explicit masks. Raises TypeError: the model does not take a cache."""

    def __init__(self, backbone: Backbone) -> None:
        if (name := cache_name(backbone.decoder)) is None:
            raise TypeError("the model does not take a cache")
        self.backbone, self.cache_name = backbone, name

    def __call__(self, ids: Tensor, starts: Tensor, cache: KeyValues) -> Tensor:
        output = self.backbone.decoder(
            input_ids=ids,
            attention_mask=self._masks(cache, starts, ids.shape[1]),
            position_ids=positions(cache, starts, ids.shape[1]),
            use_cache=True,
            **{self.cache_name: cache},
        )
        return output.last_hidden_state

    def _masks(self, cache: KeyValues, starts: Tensor, length: int) -> Any:
        if self.backbone.pads_only:
            return real_keys(cache, starts, length)
        return by_layer_type(self.backbone.config, partial(self._mask, cache, starts, length))

    def _mask(self, cache: KeyValues, starts: Tensor, length: int, window: int | None) -> Tensor:
        seen = visible(cache, starts, length, window)
        eager = self.backbone.config._attn_implementation == "eager"
        return to_additive(seen, self.backbone.causal_lm.dtype) if eager else seen


class LockstepDecoder:
    """Decodes a sharded model. Each process holds a part of every layer, so all must run each pass together; one that
    finishes early runs dummy tokens until all have finished.
    """

    def __init__(self, decoder: Decoder, backbone: Backbone) -> None:
        self.decoder, self.backbone = decoder, backbone

    def __call__(self, ids: Tensor, starts: Tensor, cache: KeyValues) -> Tensor:
        max_over_processes(1, ids.device)
        return self.decoder(ids, starts, cache)

    def finish(self) -> None:
        """Run dummy passes until all processes have finished."""
        device = self.backbone.device
        while max_over_processes(0, device):
            cache = KeyValues(int(self.backbone.config.num_hidden_layers), 1, 1)
            cache.place(0, [0])
            dummy = torch.zeros((1, 1), dtype=torch.long, device=device)
            self.decoder(dummy, dummy[0], cache)


@contextmanager
def decoding(backbone: Backbone, adapter: str | None, worth_packing: bool) -> Iterator[Decoder | None]:
    """Yield the fastest decoder that agrees with the model, or ``None`` if none works, which is logged once; free its
    copies of the weights at the end.

    Inside the block, the model's linear layers may use copies of their weights; `worth_packing` says whether enough
    tokens follow to pay for packing these. The model must be in evaluation mode, with the adapter active and without
    gradients. A sharded model that is not gathered is decoded by its own code in all processes together
    (:class:`LockstepDecoder`). Raises ModelError if no decoder works and the model is sharded.
    """
    known = _agreeing.setdefault(backbone, {})
    sharded = any(map(is_shard, backbone.model.parameters()))
    packed = worth_packing and not sharded and can_pack(next(backbone.decoder.parameters()))
    for name in ("lean", "whole"):
        made = _make(name, backbone, adapter, packed) if known.get(name, True) else None
        if made is None:
            continue
        decoder, products = made
        if name not in known:
            known[name] = _agrees(backbone, adapter, decoder, products)
        if known[name]:
            with computing_with(products):
                if not sharded:
                    yield decoder
                    return
                lockstep = LockstepDecoder(decoder, backbone)
                yield lockstep
                lockstep.finish()
            return
        del made, decoder, products
    if sharded:
        raise ModelError(
            f"{backbone.config.model_type} cannot be decoded layer by layer while it is sharded",
            remedy="gather the model for rollouts: --ds3_gather_for_generation true",
        )
    if not known.get("logged", False):
        logger.warning("Rollouts use .generate(): no decoder works for %s.", backbone.config.model_type)
        known["logged"] = True
    yield None


def _make(
    name: str, backbone: Backbone, adapter: str | None, packed: bool
) -> tuple[Decoder, dict[nn.Module, Product]] | None:
    """A decoder, and products for the model's other linear layers; ``None`` if it cannot be built."""
    parameters = list(backbone.model.parameters())
    if len({parameter.device for parameter in parameters}) > 1 or parameters[0].is_meta:
        return None
    sharded = any(map(is_shard, parameters))
    if name == "whole":
        if not (backbone.can_mask or backbone.pads_only) or cache_name(backbone.decoder) is None:
            return None
        return WholeDecoder(backbone), {} if sharded else products_of(backbone.causal_lm, adapter, packed)
    if sharded:
        return None
    try:
        decoder = LeanDecoder(backbone, adapter, packed)
    except (TypeError, AttributeError):
        return None
    return decoder, products_of(backbone.causal_lm.get_output_embeddings(), adapter, packed)


def _agrees(backbone: Backbone, adapter: str | None, decoder: Decoder, products: dict[nn.Module, Product]) -> bool:
    """Decode a few tokens of two prompts, and compare with an uncached forward pass of each."""
    prompt, steps = 9, 3
    top = min(int(backbone.config.vocab_size), 64) - 1
    ids = torch.randint(1, top, (2, prompt + steps), generator=torch.Generator().manual_seed(0)).to(backbone.device)
    starts = [0, 4]
    expected = [
        backbone.causal_lm(input_ids=row[None, start:], use_cache=False).logits[0, prompt - start - 1 : -1].float()
        for row, start in zip(ids, starts, strict=True)
    ]
    try:
        with computing_with(products):
            cache = KeyValues(int(backbone.config.num_hidden_layers), len(starts), prompt + steps)
            found, column = [], 0
            for end in range(prompt, prompt + steps):
                cache.place(column, starts)
                hidden = decoder(ids[:, column:end], torch.tensor(starts, device=ids.device), cache)
                found.append(backbone.logits(hidden[:, -1], adapter))
                column = end
    except _ERRORS as error:
        logger.debug("%s does not work for %s: %s", type(decoder).__name__, backbone.config.model_type, error)
        return False
    return difference(backbone, torch.stack(found), torch.stack(expected, 1)) <= 1
