"""Rollouts of tiny models, and what `.generate()` gives instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.generation import sample
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from tests.tiny import lora, tiny_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [20, 21, 22], [30, 31, 32, 33, 34], [50, 51]]
LONG = 20  # new tokens that are worth laying out weights for
SHORT = 4


def make(family: str = "llama", *, adapter: LoraConfig | None = None, **options: Any) -> Backbone:
    """A tiny model with an adapter that matters; the same arguments give the same weights."""
    backbone = Backbone(tiny_model(family, **options), pad_id=0)
    torch.manual_seed(1)
    backbone.add_adapter("policy", adapter or lora(family))
    return backbone


def greedy(backbone: Backbone, prompts: list[list[int]], new_tokens: int = LONG, **options: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"end_ids": [], **options}
    adapter = settings.pop("adapter", "policy")
    results = roll_out(backbone, adapter, prompts, Sampling(new_tokens, temperature=0.0), **settings)
    return [ids for [ids] in results]


def generated(
    backbone: Backbone, prompts: list[list[int]], new_tokens: int = LONG, adapter: str | None = "policy"
) -> list[list[int]]:
    """The output of `.generate()` for each prompt separately."""
    with backbone.using(adapter):
        return [
            sample(backbone.model, [p], pad_id=0, eos_ids=[], max_new_tokens=new_tokens, temperature=0.0)[0][0]
            for p in prompts
        ]


def drawn(backbone: Backbone, prompts: list[list[int]], new_tokens: int = 6, **options: Any) -> list[list[list[int]]]:
    settings: dict[str, Any] = {"end_ids": [], **options}
    return roll_out(backbone, "policy", prompts, Sampling(new_tokens, temperature=1.5), **settings)


@contextmanager
def tokens_seen(backbone: Backbone) -> Iterator[list[tuple[int, ...]]]:
    """(rows, tokens) of each pass through the model."""
    seen: list[tuple[int, ...]] = []
    embedding = backbone.causal_lm.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    try:
        yield seen
    finally:
        handle.remove()
