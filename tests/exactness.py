"""Lines with shared prefixes, computed together and separately: what exactness tests compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.text.batching import Row, collate
from tests.tiny import VOCABULARY

# The largest numbers below are about 4, where float32 resolves 4e-7; a few dozen roundings stay below this.
EXACT = 1e-5


def run(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def groups() -> list[list[tuple[int, ...]]]:
    """Lines of three prompts: six that branch at several depths (one is the prompt, one leaves it early), two, one."""
    prompt, good, bad, critique, other, short = run(12, 1), run(9, 2), run(4, 3), run(6, 4), run(5, 5), run(1, 6)
    first = [
        prompt + good,
        prompt + bad,
        prompt + good + critique,
        prompt + good + other,
        prompt[:6] + short,
        prompt,
    ]
    return [first, [good, good[:4] + bad], [critique]]


def adapter_layers(backbone: Backbone) -> list[Any]:
    return [module for module in backbone.modules() if hasattr(module, "lora_A")]


def alone(backbone: Backbone, lines: Sequence[Sequence[int]], adapter: str | None) -> list[Tensor]:
    """(time, hidden) of each line computed separately, without our masks, positions or padding."""
    with backbone.using(adapter):
        return [
            backbone.decoder(input_ids=torch.tensor([list(line)]), use_cache=False).last_hidden_state[0]
            for line in lines
        ]


def together(backbone: Backbone, rows: Sequence[Row], side: str, adapter: str | None) -> list[Tensor]:
    batch = collate(rows, backbone.pad_id, side)
    hidden = backbone(batch, adapter)
    return [hidden[row, list(indices)] for row, indices in batch.where]


def gradients(backbone: Backbone, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
    """LoRA gradients of a loss in which every number of every line has its own weight."""
    generator = torch.Generator().manual_seed(7)
    loss = torch.stack([(h * torch.randn(h.shape, generator=generator)).sum() for h in hidden]).sum()
    named = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def furthest(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(mine, theirs, strict=True))


def relative(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative error of any parameter's gradient."""
    assert mine.keys() == theirs.keys() and mine
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in mine)


def largest(tensors: Sequence[Tensor]) -> float:
    return max(float(tensor.detach().abs().max()) for tensor in tensors)
