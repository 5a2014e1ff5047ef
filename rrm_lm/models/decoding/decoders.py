"""What computes the next tokens of a rollout: the model's own code on our cache, or leaner code for common layers.

Both take token ids that stand at the same columns in all rows (see `key_values.py`) and give hidden
states. Which of them a model takes is not guessed from its name: each is compared with the model's own uncached
forward pass once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.key_values import KeyValues, cache_name, positions, visible
from rrm_lm.models.decoding.lean_decoder import LeanDecoder
from rrm_lm.models.fast.products import Product, can_pack, computing_with, products_of
from rrm_lm.models.pretrained import rounding
from rrm_lm.models.sharding import is_shard, max_over_processes

logger = logging.getLogger(__name__)

# (rows, tokens) ids at the cache's place and (rows,) starts -> (rows, tokens, hidden)
Decoder = Callable[[Tensor, Tensor, KeyValues], Tensor]

_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError)

_agreeing: WeakKeyDictionary[Backbone, dict[str, bool]] = WeakKeyDictionary()  # which decoders a model takes


class WholeDecoder:
    """The model's own code, with our cache, and with masks that say for each pair of tokens who sees whom.

    Raises:
        TypeError: The model takes no cache from outside.
    """

    def __init__(self, backbone: Backbone) -> None:
        name = cache_name(backbone.decoder)
        if name is None:
            raise TypeError("a model that takes no cache")
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
        """One mask, or one for each type of layer, in the form that the attention takes."""
        config = self.backbone.config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if not kinds:
            return self._mask(cache, starts, length, window)
        return {
            kind: self._mask(cache, starts, length, window if kind == "sliding_attention" else None)
            for kind in set(kinds)
        }

    def _mask(self, cache: KeyValues, starts: Tensor, length: int, window: int | None) -> Tensor:
        seen = visible(cache, starts, length, window)
        if self.backbone.config._attn_implementation != "eager":
            return seen
        dtype = self.backbone.causal_lm.dtype  # eager attention adds its mask to the scores
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


class LockstepDecoder:
    """Decodes a sharded model: each process holds a part of every layer, so all of them must run each pass together.

    A process that has finished runs dummy tokens until all have finished.
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
    """The fastest decoder that computes what the model computes; its copies of weights are let go at the end.

    Inside, the model's linear layers may compute with copies of their weights. The model must be in evaluation mode,
    with the adapter active and without gradients. A sharded model (whose weights are not gathered) is decoded by its
    own code in all processes alike (:class:`LockstepDecoder`).

    Args:
        backbone: The model.
        adapter: The adapter that is active.
        worth_packing: Whether enough tokens follow to pay for laying out the weights anew.

    Yields:
        The decoder, or ``None`` for a model that none serves; the log says so once.

    Raises:
        ModelError: None serves a model that is sharded.
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
            f"The layers of {backbone.config.model_type} cannot be decoded one after the other while they are sharded",
            remedy="gather the model for rollouts: --ds3_gather_for_generation true",
        )
    if not known.get("said", False):
        logger.warning("Rollouts take .generate(): %s cannot be decoded here.", backbone.config.model_type)
        known["said"] = True
    yield None


def _make(
    name: str, backbone: Backbone, adapter: str | None, packed: bool
) -> tuple[Decoder, dict[nn.Module, Product]] | None:
    """A decoder, and what the model's other linear layers compute with meanwhile; ``None`` where it cannot be made."""
    parameters = list(backbone.model.parameters())
    if len({parameter.device for parameter in parameters}) > 1 or parameters[0].is_meta:
        return None
    sharded = any(map(is_shard, parameters))
    if name == "whole":
        if not backbone.can_mask or cache_name(backbone.decoder) is None:
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
    """Decode a few given tokens of two prompts, and compare with an uncached computation of each."""
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
        logger.debug("%s does not serve %s: %s", type(decoder).__name__, backbone.config.model_type, error)
        return False
    theirs = torch.stack(expected, 1)
    error = float((torch.stack(found) - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    return error <= rounding(backbone.causal_lm.dtype, backbone.device)
