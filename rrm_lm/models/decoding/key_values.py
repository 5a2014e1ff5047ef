"""Keys and values of rows that are being decoded: allocated once, written in place.

Every row ends at the same column, so that the next token of all rows goes to the same place::

    columns   0 1 2 3 4 5 6 7 8 ...
    row 0     . . . p p p r r      start 3: prompt of three tokens, two tokens decoded
    row 1     p p p p p p r r      start 0

A row is its first column (its *start*) and nothing else: positions count from there, and what is before it is not seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# The argument that takes a cache, and the output's field that gives it back. transformers 5.24 renamed the other two
# to `cache`, and some models drop a name that is not theirs without a word, so the model's signature is asked.
_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(model: Any) -> str | None:
    """How this model's `forward` and its output call the cache; ``None`` for a model that takes none by these names."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in _NAMES if name in taken), None)


class KeyValues(Cache):
    """A transformers cache for a fixed number of rows and columns.

    Attributes:
        first: The row at which what is computed now begins.
        column: The column at which what is computed now begins.
        low: The first column that a row computed now may see; those before are left out.
        high: The last column at which one of these rows starts.

    Args:
        layers: Layers of the model.
        rows: Most rows.
        columns: Most tokens of a row, padding included.
    """

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.first = self.column = self.low = self.high = 0
        self._layers = [_Layer(self, rows, columns) for _ in range(layers)]
        super().__init__(layers=list(self._layers))

    def place(self, column: int, starts: Sequence[int], first: int = 0) -> None:
        """Say where the next computation stands: its first column, and the starts of its rows from `first` on."""
        self.first, self.column, self.low, self.high = first, column, min(starts), max(starts)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that are behind the next computation's first query."""
        return self.column - self.low

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys of the next computation, and the column of the first."""
        return self.column - self.low + query_length, 0

    def spread(self, length: int, starts: Tensor) -> None:
        """Put the first `length` tokens of row 0, which starts at column 0 now, at the start of every row."""
        rows = torch.arange(len(starts), device=starts.device)[:, None]
        columns = starts[:, None] + torch.arange(length, device=starts.device)
        for layer in self._layers:
            for whole in layer.both():
                whole[rows, :, columns] = whole[0, :, :length].transpose(0, 1).clone()

    def copy(self, sources: Tensor, targets: Tensor, end: int) -> None:
        """Copy some rows onto others, up to the column `end`. No target is a source."""
        for layer in self._layers:
            for whole in layer.both():
                whole[targets, :, self.low : end] = whole[sources, :, self.low : end]


class _Layer(CacheLayerMixin):
    """One layer's keys and values, each (rows, heads, columns, size); their shapes are known when the first come."""

    is_sliding = False

    def __init__(self, cache: KeyValues, rows: int, columns: int) -> None:
        super().__init__()
        self.cache, self.rows, self.columns = cache, rows, columns

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: what is never written is masked, but what is masked must be finite.
        self.keys, self.values = (
            states.new_zeros(self.rows, states.shape[1], self.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write some columns of some rows; returns all that these rows may see."""
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
        """All keys and all values."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.get_mask_sizes(query_length, 0)

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def get_max_length(self) -> int:
        return self.columns


def visible(cache: KeyValues, starts: Tensor, length: int, window: int | None = None) -> Tensor:
    """What each of `length` queries per row may see.

    Args:
        cache: Says at which columns queries and keys stand.
        starts: (rows,) first column of each row.
        length: Queries of each row.
        window: Sliding window in tokens: a query sees keys fewer than this many positions back.

    Returns:
        (rows, 1, length, keys), True where the key is of the query's row, not behind it and within the window.
    """
    keys = torch.arange(cache.low, cache.column + length, device=starts.device)
    queries = torch.arange(cache.column, cache.column + length, device=starts.device)[:, None]
    seen = keys <= queries
    if window is not None:
        seen &= queries - keys < window
    seen = seen & (keys >= starts[:, None, None])
    # A query before its row's start sees nothing, and would be a softmax over nothing: let it see itself.
    return (seen | (keys == queries))[:, None]


def positions(cache: KeyValues, starts: Tensor, length: int) -> Tensor:
    """(rows, length) positions of the next tokens along their rows; 0 before a row's start."""
    columns = torch.arange(cache.column, cache.column + length, device=starts.device)
    return (columns - starts[:, None]).clamp_min_(0)
