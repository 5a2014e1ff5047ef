"""A key-value cache that is allocated once and written in place.

All rows end at the same column, so the next token of every row has the same column::

    columns   0 1 2 3 4 5 6 7 8 ...
    row 0     . . . p p p r r      start 3: prompt of three tokens, two tokens decoded
    row 1     p p p p p p r r      start 0

A row is defined by its first column, its *start*: positions count from there, and columns before it are masked.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Names of the cache argument and of the output field. transformers 5.24 renamed the other two to `cache`, and some
# models ignore unknown names silently, so the signature decides.
_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(model: Any) -> str | None:
    """The name of the cache in this model's `forward` and output; ``None`` if it takes no cache."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in _NAMES if name in taken), None)


class KeyValues(Cache):
    """A transformers cache for at most `rows` rows of `columns` tokens, including padding."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.first = self.column = 0  # the first row and column of the current computation
        self.low = 0  # the first column that any of its rows attends to; earlier ones are left out
        self.high = 0  # the largest start of its rows
        # Weak: a cycle would keep the memory of every batch until the garbage collector runs.
        self._layers = [_Layer(weakref.proxy(self), rows, columns) for _ in range(layers)]
        self._block, self._taken = torch.empty(0), 0  # the memory of all layers, and how many parts of it have an owner
        super().__init__(layers=list(self._layers))

    def room(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Zeros like `like` for the keys or the values of a layer. On a CPU, layers of the same shape share one block,
        which the C library returns to the system when it is freed; of many smaller ones, it keeps gigabytes.
        """
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        if not self._taken:
            self._block = like.new_zeros(2 * len(self._layers), *shape)
        if self._taken == len(self._block) or (self._block.shape[1:], self._block.dtype) != (shape, like.dtype):
            return like.new_zeros(shape)
        self._taken += 1
        return self._block[self._taken - 1]

    def place(self, column: int, starts: Sequence[int], first: int = 0) -> None:
        """Set the first column of the next computation, its first row, and the starts of its rows."""
        self.first, self.column, self.low, self.high = first, column, min(starts), max(starts)

    def spread(self, length: int, starts: Tensor) -> None:
        """Copy the first `length` tokens of row 0, which starts at column 0, to the start of every row."""
        rows = torch.arange(len(starts), device=starts.device)[:, None]
        columns = starts[:, None] + torch.arange(length, device=starts.device)
        for layer in self._layers:
            for whole in layer.both():
                whole[rows, :, columns] = whole[0, :, :length].transpose(0, 1).clone()

    def copy(self, sources: Tensor, targets: Tensor, end: int) -> None:
        """Copy rows to other rows, up to the column `end`. No target may be a source."""
        for layer in self._layers:
            for whole in layer.both():
                whole[targets, :, self.low : end] = whole[sources, :, self.low : end]


class _Layer(CacheLayerMixin):
    """One layer's keys and values, each (rows, heads, columns, size), allocated when the first ones arrive."""

    is_sliding = False

    def __init__(self, cache: KeyValues, rows: int, columns: int) -> None:
        super().__init__()
        self.cache, self.rows, self.columns = cache, rows, columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, because masked values must be finite.
        self.keys, self.values = (
            self.cache.room(states, (self.rows, states.shape[1], self.columns, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write some columns of some rows; return all columns that these rows attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, end = self.cache, self.cache.column + key_states.shape[2]
        rows = slice(cache.first, cache.first + key_states.shape[0])
        seen = []
        for whole, states in zip(self.both(), (key_states, value_states), strict=True):
            whole[rows, :, cache.column : end] = states
            seen.append(whole[rows, :, cache.low : end])
        return seen[0], seen[1]

    def both(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys of the next computation, and their offset."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Visible columns before the next computation."""
        return self.cache.column - self.cache.low

    def get_max_length(self) -> int:
        return self.columns


def visible(cache: KeyValues, starts: Tensor, length: int, window: int | None = None) -> Tensor:
    """The attention mask of `length` queries per row.

    `starts` is the (rows,) first column of each row. With a sliding `window`, a query sees keys fewer than this many
    positions back. Returns (rows, 1, length, keys), True where the query sees the key.
    """
    keys = torch.arange(cache.low, cache.column + length, device=starts.device)
    queries = torch.arange(cache.column, cache.column + length, device=starts.device)[:, None]
    seen = keys <= queries
    if window is not None:
        seen &= queries - keys < window
    seen = seen & (keys >= starts[:, None, None])
    # A softmax over nothing is NaN, so a query before its row's start sees itself.
    return (seen | (keys == queries))[:, None]


def real_keys(cache: KeyValues, starts: Tensor, length: int) -> Tensor:
    """(rows, keys), True where a key is a token of its row: the mask for attention that is causal by itself."""
    return torch.arange(cache.low, cache.column + length, device=starts.device) >= starts[:, None]


def positions(cache: KeyValues, starts: Tensor, length: int) -> Tensor:
    """(rows, length) positions of the next tokens along their rows; 0 before a row's start."""
    columns = torch.arange(cache.column, cache.column + length, device=starts.device)
    return (columns - starts[:, None]).clamp_min_(0)
