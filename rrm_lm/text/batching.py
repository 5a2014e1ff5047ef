"""Padding, masks, positions, prefix sharing and token budgets.

**Prefix sharing.** Lines that begin with the same tokens (a prompt's two responses; a response and its critiques) form
one row: a tree that contains every shared run of tokens once. A token attends only to the tokens on its path to the
root, and its position counts along that path, so each line is computed exactly as in a row of its own. The end of a
line may be blind to its beginning: see :func:`share`. The tree is built from token ids, so a tokenizer that merges
tokens across the border of prompt and response only shares slightly less.

A mask is named for what is True in it. No mask is computed from pad ids; lengths are part of the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the model's input: the lines of a tree, in which every shared run of tokens is once."""

    ids: tuple[int, ...]  # token ids; a token follows those before it in its line
    positions: tuple[int, ...]  # each token's position along its path
    where: tuple[tuple[int, ...], ...]  # the indices of each line's tokens in this row, in order
    # the first position on its path that each token attends to; empty if all attend to everything
    sees_from: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def share(lines: Sequence[Sequence[int]], blind: Sequence[tuple[int, int]] | None = None) -> Row:
    """Arrange lines in one row that contains every common prefix once. `lines` are token ids, none empty. `blind` is
    ``(start, first)`` for each line: its tokens from position ``start`` on attend to nothing before ``first`` except
    the line's first token; ``(0, 0)`` for no restriction.
    """
    # Tokens are shared if their ids and what they attend to are both equal.
    symbols = [
        [
            (token, 0 if blind is None or depth < blind[number][0] else blind[number][1])
            for depth, token in enumerate(line)
        ]
        for number, line in enumerate(lines)
    ]
    tokens: list[tuple[int, int]] = []
    positions: list[int] = []
    where: list[list[int]] = [[] for _ in lines]

    def lay(members: list[int], depth: int) -> None:
        by_next: dict[tuple[int, int], list[int]] = {}
        for member in members:
            if len(symbols[member]) > depth:
                by_next.setdefault(symbols[member][depth], []).append(member)
        for group in by_next.values():
            stop = common_beginning([symbols[member] for member in group])
            here = range(len(tokens), len(tokens) + stop - depth)
            tokens.extend(symbols[group[0]][depth:stop])
            positions.extend(range(depth, stop))
            for member in group:
                where[member].extend(here)
            lay(group, stop)

    lay(list(range(len(lines))), 0)
    ids, first = zip(*tokens, strict=True)
    return Row(ids, tuple(positions), tuple(map(tuple, where)), first if any(first) else ())


def common_beginning(lines: Sequence[Any]) -> int:
    """Length of the common prefix of all lines."""
    first, last = min(lines), max(lines)  # the prefix that these two share is shared by all
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def alike(items: Sequence[Any], most: int, prompt: Callable[[Any], Sequence[int]]) -> list[list[Any]]:
    """Group up to `most` items whose prompts begin alike, such as questions on one text: at least half of the tokens of
    each are a common prefix. `prompt` gives the token ids of an item's prompt.
    """
    groups: list[list[Any]] = []
    for item in sorted(items, key=prompt):  # type: ignore[arg-type]
        first = groups[-1][0] if groups else item
        common = common_beginning([prompt(first), prompt(item)])
        if groups and len(groups[-1]) < most and 2 * common >= max(len(prompt(first)), len(prompt(item))):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


@dataclass(slots=True)
class Batch:
    """Rows padded to one length, ready for the model."""

    input_ids: Tensor  # (batch, time) token ids
    position_ids: Tensor  # (batch, time) positions along each token's own path
    is_real: Tensor  # (batch, time) True at tokens, False at padding
    # (batch, time, time) True if a query attends to a key; `None` if every row is a single line, for which causal
    # attention is enough
    sees: Tensor | None
    # for each line of all rows, in order: its row, and the (padded) indices of its tokens in that row
    where: list[tuple[int, tuple[int, ...]]]
    # what :func:`rrm_lm.models.agent.find_responses` has found, on the batch's device
    responses: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; the host does not wait for the copies."""
        parts = (self.input_ids, self.position_ids, self.is_real, self.sees)
        ids, positions, real, sees = (None if part is None else _copied(part, device) for part in parts)
        return Batch(ids, positions, real, sees, self.where)  # type: ignore[arg-type]

    def at(self, line: int, token: int) -> tuple[int, int]:
        """Row and index of a line's token."""
        row, indices = self.where[line]
        return row, indices[token]


def from_host(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of values that are on the host. Unlike ``torch.tensor(values, device=device)``, it does not wait for
    what the device computes.
    """
    return _copied(torch.tensor(values, dtype=dtype), device)


def _copied(tensor: Tensor, device: torch.device | str) -> Tensor:
    # Only CUDA reads all of the host's memory before the call returns (on MPS: pytorch#189690).
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def collate(rows: Sequence[Row], pad_id: int, padding_side: str = "right") -> Batch:
    """Pad rows to the longest one. The padding is masked, so any `pad_id` works, and results do not depend on
    `padding_side` (``right`` or ``left``).
    """
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    is_real = torch.zeros((len(rows), width), dtype=torch.bool)
    branching = any(len(line) != len(row) or row.sees_from for row in rows for line in row.where)
    sees = torch.zeros((len(rows), width, width), dtype=torch.bool) if branching else None
    where: list[tuple[int, tuple[int, ...]]] = []
    for number, row in enumerate(rows):
        offset = width - len(row) if padding_side == "left" else 0
        here = slice(offset, offset + len(row))
        input_ids[number, here] = torch.tensor(row.ids)
        position_ids[number, here] = torch.tensor(row.positions)
        is_real[number, here] = True
        if sees is not None:
            sees[number, here, here] = _paths(row)
        where.extend((number, tuple(offset + index for index in indices)) for indices in row.where)
    if sees is not None:
        # A softmax over nothing is NaN, so padding sees itself.
        sees |= torch.diag_embed(~is_real)
    return Batch(input_ids, position_ids, is_real, sees, where)


def _paths(row: Row) -> Tensor:
    """(time, time): True where the key is on the query's path and not after it."""
    seen = torch.zeros((len(row), len(row)), dtype=torch.bool)
    for indices in row.where:
        line = torch.tensor(indices)
        seen[line[:, None], line] |= torch.ones((len(line), len(line)), dtype=torch.bool).tril()
    if row.sees_from:
        positions = torch.tensor(row.positions)[None, :]
        # The first token stays visible: models use it as an attention sink (Xiao et al. 2023, arXiv 2309.17453).
        seen &= (positions >= torch.tensor(row.sees_from)[:, None]) | (positions == 0)
    return seen


def attention_mask(batch: Batch, dtype: torch.dtype, window: int | None = None, additive: bool = False) -> Tensor:
    """Make the attention mask for a model.

    Args:
        dtype: Floating type of an additive mask.
        window: Sliding window in tokens: a query attends to keys fewer than this many positions back.
        additive: Return 0 and the smallest number instead of True and False. Eager attention adds the mask to the
            scores; a boolean mask silently has no effect there.

    Returns:
        ``is_real`` as (batch, time) integers if no row branches (the model then builds its own causal mask), else
        (batch, 1, time, time).
    """
    if batch.sees is None:
        return batch.is_real.long()
    sees = batch.sees
    if window is not None:
        back = batch.position_ids[:, :, None] - batch.position_ids[:, None, :]
        sees = sees & (back < window)
    return to_additive(sees[:, None], dtype) if additive else sees[:, None]


def to_additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to numbers to add to attention scores: 0 where True, else the smallest number."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


def by_layer_type(config: Any, mask: Callable[[int | None], Tensor]) -> Any:
    """A model's masks: one, or one per layer type if the configuration lists `layer_types`. `mask` makes a mask for a
    sliding window, or for full attention (None).
    """
    window, kinds = window_of(config), getattr(config, "layer_types", None)
    if not kinds:
        return mask(window)
    return {kind: mask(window if kind == "sliding_attention" else None) for kind in set(kinds)}


def context_length(config: Any) -> int | None:
    """How many tokens a model reads at most, None if its configuration does not say. With LongRoPE (Phi-3 128k), those
    that its short frequencies cover: transformers chooses the frequencies by the longest row of a batch, so that one
    longer row would change all others, and the keys that are cached already.
    """
    limit, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if rope and all(isinstance(one, dict) for one in rope.values()) else [rope]
    for one in kinds:  # one for each layer type, in some families
        if one.get("rope_type") == "longrope":
            short = one.get("original_max_position_embeddings") or config.original_max_position_embeddings
            limit = short if limit is None else min(limit, short)
    return limit


def window_of(config: Any) -> int | None:
    """The sliding window of a model's attention. An unknown key of a config.json becomes an attribute, too, which the
    model ignores: the window of a Mistral checkpoint that was converted to Llama.
    """
    return getattr(config, "sliding_window", None) if _declares_window(type(config)) else None


@cache
def _declares_window(kind: type) -> bool:
    return hasattr(kind, "sliding_window") or "sliding_window" in inspect.signature(kind.__init__).parameters


def length_groups(
    lengths: Sequence[int], max_tokens: int, overhead: int = 48, sizes: Sequence[int] | None = None
) -> list[list[int]]:
    """Group items of similar length into micro-batches of at most ``max_tokens`` padded tokens.

    Dynamic programming over the sorted lengths finds the split with the least padding, counting ``overhead`` tokens per
    micro-batch for its fixed cost. An item longer than ``max_tokens`` gets its own micro-batch. `lengths` are those of
    each item's longest row, `overhead` is in tokens, and `sizes` are the numbers of rows of the items, by default 1.
    Returns item indices of each micro-batch, longest first so that memory peaks in the first one.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(order) + 1):
        width = lengths[order[stop - 1]]
        options, rows = [], 0
        for start in range(stop - 1, -1, -1):
            rows += 1 if sizes is None else sizes[order[start]]
            padded = width * rows
            if padded > max_tokens and stop - start > 1:
                break
            options.append((best[start][0] + padded + overhead, start))
        best.append(min(options))
    groups, stop = [], len(order)
    while stop:
        start = best[stop][1]
        groups.append(order[start:stop])
        stop = start
    return groups


def row_groups(rows: Sequence[Sequence[Row]], max_tokens: int) -> list[list[int]]:
    """Like :func:`length_groups`, for items with several rows each; items without rows are left out."""
    present = [i for i, group in enumerate(rows) if group]
    groups = length_groups([max(map(len, rows[i])) for i in present], max_tokens, sizes=[len(rows[i]) for i in present])
    return [[present[i] for i in group] for group in groups]
