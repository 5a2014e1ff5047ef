"""The cache that rows are decoded in: who sees whom, and what is copied where."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch

from rrm_lm.models.decoding.key_values import KeyValues, positions, visible


def filled(rows: int = 3, columns: int = 6) -> KeyValues:
    """A cache of two layers whose keys say where they stand, and whose values are their negatives."""
    cache = KeyValues(2, rows, columns)
    cache.place(0, [0] * rows)
    keys = torch.arange(rows * columns).view(rows, 1, columns, 1).expand(-1, 2, -1, 3).float()
    for layer in range(2):
        cache.update(keys, -keys, layer)
    return cache


def layers(cache: KeyValues) -> list[Any]:
    return cache.layers


def test_what_is_written_is_seen_from_the_first_start_on() -> None:
    cache = KeyValues(1, 4, 8)
    cache.place(3, [2, 1], first=1)
    keys, values = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 7)
    seen_keys, seen_values = cache.update(keys, values, 0)
    assert torch.equal(seen_keys[:, :, 2:], keys) and torch.equal(seen_values[:, :, 2:], values)
    assert seen_keys.shape == (2, 2, 5, 5) and not seen_keys[:, :, :2].any()
    assert cache.get_seq_length() == 2 and cache.get_mask_sizes(3, 0) == (5, 0)
    (layer,) = layers(cache)
    whole = layer.keys
    assert whole.shape == (4, 2, 8, 5) and not whole[[0, 3]].any()
    assert seen_keys.data_ptr() == whole[1:, :, 1:].data_ptr()  # a view: nothing is put together anew


def test_layers_of_one_shape_share_one_block() -> None:
    cache = KeyValues(3, 4, 8)
    for layer, size in enumerate((5, 7, 5)):
        cache.update(torch.randn(4, 2, 3, size), torch.randn(4, 2, 3, size), layer)
    blocks = [part.untyped_storage() for layer in layers(cache) for part in layer.both()]
    assert [one.data_ptr() == blocks[0].data_ptr() for one in blocks] == [True, True, False, False, True, True]
    assert blocks[0].nbytes() == 4 * 6 * 4 * 2 * 8 * 5 and blocks[2].nbytes() == 4 * 4 * 2 * 8 * 7
    parts = [part.data_ptr() for layer in layers(cache) for part in layer.both()]
    assert len(set(parts)) == 6


def test_memory_is_free_as_soon_as_the_cache_is() -> None:
    cache = filled()
    gone = weakref.ref(layers(cache)[0].keys)
    gc.disable()  # a cycle would live on until it runs
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_rows_are_copied_onto_others() -> None:
    cache = filled()
    cache.place(5, [0, 1, 1])
    cache.copy(torch.tensor([2]), torch.tensor([0]), 4)
    for layer in layers(cache):
        assert layer.keys[0, 0, :, 0].tolist() == [12, 13, 14, 15, 4, 5]
        assert layer.values[0, 1, :, 2].tolist() == [-12, -13, -14, -15, -4, -5]
        assert layer.keys[1:, 0, :, 0].tolist() == [[6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]]


def test_a_common_beginning_is_spread_to_the_start_of_each_row() -> None:
    cache = filled()
    cache.spread(3, torch.tensor([2, 0, 3]))
    for layer in layers(cache):
        assert layer.keys[:, 1, :, 0].tolist() == [[0, 1, 0, 1, 2, 5], [0, 1, 2, 9, 10, 11], [12, 13, 14, 0, 1, 2]]


def test_who_sees_whom() -> None:
    cache = KeyValues(1, 2, 6)
    cache.place(3, [1, 4])
    starts = torch.tensor([1, 4])
    assert visible(cache, starts, 2)[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[0, 0, 1, 0], [0, 0, 0, 1]],  # what stands before the start sees itself
    ]
    assert visible(cache, starts, 2, window=2)[0, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert positions(cache, starts, 2).tolist() == [[2, 3], [0, 0]]
