"""A stand-in for flash attention on the CPU, with its interface in transformers: a mask of real tokens, or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "unpadded"


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
    """Causal attention within the real tokens of each row."""
    if mask is not None:
        assert mask.dim() == 2, "flash attention takes no mask per token pair"
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    out = torch.zeros_like(query)
    for row in range(len(query)):
        real = slice(None) if mask is None else mask[row].bool()
        own = real if query.shape[2] == key.shape[2] else slice(None)  # decoding: the last tokens, all real
        asked, keys, values = query[row : row + 1, :, own], key[row : row + 1, :, real], value[row : row + 1, :, real]
        sees = torch.ones(asked.shape[2], keys.shape[2], dtype=torch.bool).tril(keys.shape[2] - asked.shape[2])
        mixed = nn.functional.scaled_dot_product_attention(asked, keys, values, sees, scale=more.get("scaling"))
        out[row : row + 1, :, own] = mixed
    return out.transpose(1, 2), None


def register() -> None:
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, flash_attention_mask)


def unregister() -> None:
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(NAME, None)
    ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(NAME, None)
