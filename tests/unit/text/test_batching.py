"""Trees of token runs, masks, padding and length groups, against hand-made answers and by property."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config

from rrm_lm.text.batching import (
    Row,
    attention_mask,
    collate,
    common_beginning,
    context_length,
    from_host,
    length_groups,
    share,
    window_of,
)

# Few token ids, so that lines often share prefixes of every length, repeat, or begin one another.
LINES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=6)
SIDES = st.sampled_from(["left", "right"])


def picture(mask: torch.Tensor) -> list[str]:
    """A boolean (time, time) mask as rows of x and dots."""
    return ["".join("x" if cell else "." for cell in row) for row in mask.tolist()]


# -- share ----------------------------------------------------------------------------------------------------------


def test_one_line_is_one_run() -> None:
    row = share([[7, 8, 7]])
    assert row == Row((7, 8, 7), (0, 1, 2), ((0, 1, 2),))
    assert len(row) == 3


def test_a_tree_by_hand() -> None:
    row = share([[1, 2, 5, 6, 9], [1, 2, 7], [1, 2, 5, 6], [1, 2, 5, 8]])
    #    1 2 (run 0) - 5 (run 1) - 6 (run 2) - 9 (run 3)
    #                            - 8 (run 4)
    #                - 7 (run 5)
    assert row.ids == (1, 2, 5, 6, 9, 8, 7)
    assert row.positions == (0, 1, 2, 3, 4, 3, 2)
    assert row.where == ((0, 1, 2, 3, 4), (0, 1, 6), (0, 1, 2, 3), (0, 1, 2, 5))


def test_lines_without_a_common_beginning_are_separate_roots() -> None:
    row = share([[1, 2], [3, 2]])
    assert (row.ids, row.positions, row.where) == ((1, 2, 3, 2), (0, 1, 0, 1), ((0, 1), (2, 3)))


def test_equal_lines_stand_once() -> None:
    assert share([[4, 5], [4, 5]]) == Row((4, 5), (0, 1), ((0, 1), (0, 1)))


@given(LINES)
def test_every_line_can_be_read_back(lines: list[list[int]]) -> None:
    row = share(lines)
    assert len(row.where) == len(lines)
    for line, indices in zip(lines, row.where, strict=True):
        assert [row.ids[i] for i in indices] == line
        assert [row.positions[i] for i in indices] == list(range(len(line)))
        assert list(indices) == sorted(indices)


@given(LINES)
def test_every_prefix_stands_once(lines: list[list[int]]) -> None:
    prefixes = {tuple(line[:stop]) for line in lines for stop in range(1, len(line) + 1)}
    assert len(share(lines)) == len(prefixes)


def test_many_lines_are_laid_without_recursion_trouble() -> None:
    lines = [[1] * (n + 1) for n in range(200)]  # each begins the next
    assert len(share(lines)) == 200


@given(LINES, st.data())
def test_blind_ends_share_only_with_their_like(lines: list[list[int]], data: st.DataObject) -> None:
    blind = []
    for line in lines:
        start = data.draw(st.integers(1, len(line)))
        blind.append(data.draw(st.sampled_from([(0, 0), (start, start - 1)])))
    row = share(lines, blind)
    batch = collate([row], pad_id=0)
    for number, (line, (start, first)) in enumerate(zip(lines, blind, strict=True)):
        indices = row.where[number]
        assert [row.ids[i] for i in indices] == line
        for depth, index in enumerate(indices):
            seen = indices[: depth + 1]
            if depth >= start and first > 0:
                seen = (indices[0], *indices[first : depth + 1])  # the first token stays in sight
            if batch.sees is not None:
                assert batch.sees[0, index].nonzero().flatten().tolist() == sorted(set(seen))
            else:
                assert seen == indices[: depth + 1] and index == depth


def test_a_blind_end_by_hand() -> None:
    lines = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4]]
    row = share(lines, [(3, 2), (0, 0), (0, 0)])
    assert row.ids == (1, 2, 3, 4, 5, 4, 5)  # the end of the first line is not that of the second
    assert row.where == ((0, 1, 2, 3, 4), (0, 1, 2, 5, 6), (0, 1, 2, 5))
    sees = collate([row], pad_id=0).sees
    assert sees is not None
    assert picture(sees[0]) == ["x......", "xx.....", "xxx....", "x.xx...", "x.xxx..", "xxx..x.", "xxx..xx"]


def test_a_single_blind_line_needs_a_mask_of_pairs() -> None:
    batch = collate([share([[1, 2, 3, 4]], [(3, 2)]), share([[5]])], pad_id=0)
    assert batch.sees is not None
    assert picture(batch.sees[0]) == ["x...", "xx..", "xxx.", "x.xx"]
    assert picture(batch.sees[1]) == ["x...", ".x..", "..x.", "...x"]


# -- collate --------------------------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    batch = collate([share([[1, 2, 5, 6], [1, 2, 7]]), share([[3, 4, 5]])], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 5, 6, 7], [3, 4, 5, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 2, 0, 0]]
    assert batch.is_real.tolist() == [[True] * 5, [True, True, True, False, False]]
    assert batch.sees is not None
    assert picture(batch.sees[0]) == ["x....", "xx...", "xxx..", "xxxx.", "xx..x"]
    assert picture(batch.sees[1]) == ["x....", "xx...", "xxx..", "...x.", "....x"]  # padding sees itself
    assert batch.where == [(0, (0, 1, 2, 3)), (0, (0, 1, 4)), (1, (0, 1, 2))]
    assert batch.at(1, 2) == (0, 4)
    assert batch.at(2, 0) == (1, 0)


def test_left_padding_by_hand() -> None:
    batch = collate([share([[1, 2, 5], [1, 7]]), share([[3, 4]])], pad_id=9, padding_side="left")
    assert batch.input_ids.tolist() == [[1, 2, 5, 7], [9, 9, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 1], [0, 0, 0, 1]]
    assert batch.is_real.tolist() == [[True] * 4, [False, False, True, True]]
    assert batch.sees is not None
    assert picture(batch.sees[0]) == ["x...", "xx..", "xxx.", "x..x"]
    assert picture(batch.sees[1]) == ["x...", ".x..", "..x.", "..xx"]
    assert batch.where == [(0, (0, 1, 2)), (0, (0, 3)), (1, (2, 3))]


def test_single_lines_need_no_mask_of_pairs() -> None:
    batch = collate([share([[1, 2, 3]]), share([[4]])], pad_id=0)
    assert batch.sees is None
    mask = attention_mask(batch, torch.float32)
    assert mask.dtype == torch.long and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_token_equal_to_the_pad_id_is_real() -> None:
    batch = collate([share([[0, 5, 0]]), share([[5]])], pad_id=0)
    assert batch.is_real.tolist() == [[True, True, True], [True, False, False]]


@given(st.lists(LINES, min_size=1, max_size=3), SIDES)
def test_a_token_sees_its_own_path_and_nothing_else(prompts: list[list[list[int]]], side: str) -> None:
    batch = collate([share(lines) for lines in prompts], pad_id=0, padding_side=side)
    lines = [line for group in prompts for line in group]
    assert len(batch.where) == len(lines)
    for number, line in enumerate(lines):
        row, indices = batch.where[number]
        assert batch.input_ids[row, list(indices)].tolist() == line
        assert batch.position_ids[row, list(indices)].tolist() == list(range(len(line)))
        assert bool(batch.is_real[row, list(indices)].all())
        assert batch.at(number, len(line) - 1) == (row, indices[-1])
        if batch.sees is not None:
            for depth, index in enumerate(indices):
                assert batch.sees[row, index].nonzero().flatten().tolist() == list(indices[: depth + 1])
    used = {(row, index) for row, indices in batch.where for index in indices}
    assert int(batch.is_real.sum()) == len(used)
    if batch.sees is not None:
        of_padding, to_padding = batch.sees[~batch.is_real], batch.sees.transpose(1, 2)[~batch.is_real]
        assert of_padding.sum(-1).tolist() == [1] * len(of_padding)  # itself, so that no softmax is over nothing
        assert to_padding.sum(-1).tolist() == [1] * len(to_padding)  # and nobody else sees it


def test_to_moves_every_tensor() -> None:
    batch = collate([share([[1, 2], [1, 3]])], pad_id=0).to("meta")
    assert batch.sees is not None
    tensors = (batch.input_ids, batch.position_ids, batch.is_real, batch.sees)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert collate([share([[1]])], pad_id=0).to("meta").sees is None


# -- attention mask -------------------------------------------------------------------------------------------------


def test_mask_forms() -> None:
    batch = collate([share([[1, 2], [1, 3]])], pad_id=0)
    seen = attention_mask(batch, torch.float32)
    assert seen.shape == (1, 1, 3, 3) and seen.dtype == torch.bool
    assert picture(seen[0, 0]) == ["x..", "xx.", "x.x"]
    added = attention_mask(batch, torch.bfloat16, additive=True)
    assert added.shape == (1, 1, 3, 3) and added.dtype == torch.bfloat16
    assert torch.equal(added == 0, seen)
    assert added[0, 0, 0, 1] == torch.finfo(torch.bfloat16).min


def test_window_counts_along_the_path() -> None:
    # Prompt of three, then two branches of two; the second branch stands three places further than its positions say.
    batch = collate([share([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7]])], pad_id=0)
    mask = attention_mask(batch, torch.float32, window=2)
    assert picture(mask[0, 0]) == [
        "x......",
        "xx.....",
        ".xx....",
        "..xx...",
        "...xx..",
        "..x..x.",
        ".....xx",
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_sees_itself_through_a_window(side: str) -> None:
    batch = collate([share([[1, 2, 3, 4], [1, 5]]), share([[1]])], pad_id=0, padding_side=side)
    mask = attention_mask(batch, torch.float32, window=1)
    assert torch.equal(mask[:, 0], torch.eye(5, dtype=torch.bool).expand(2, 5, 5))


# -- length groups --------------------------------------------------------------------------------------------------


def cost(group: list[int], lengths: list[int], sizes: list[int] | None) -> int:
    """Padded tokens of a group."""
    return max(lengths[i] for i in group) * sum(1 if sizes is None else sizes[i] for i in group)


def least(lengths: list[int], max_tokens: int, overhead: int, sizes: list[int] | None) -> int:
    """The least cost over every way to split the sorted items, tried one by one."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])

    def best(start: int) -> float:
        if start == len(order):
            return 0
        options = []
        for stop in range(start + 1, len(order) + 1):
            group = order[start:stop]
            padded = cost(group, lengths, sizes)
            if len(group) == 1 or padded <= max_tokens:
                options.append(padded + overhead + best(stop))
        return min(options)

    return int(best(0))


@st.composite
def items(draw: st.DrawFn) -> tuple[list[int], list[int] | None]:
    # Distinct lengths where items have sizes: among equal ones their order is open, and could hide a better split.
    sized = draw(st.booleans())
    lengths = draw(st.lists(st.integers(1, 40), max_size=9, unique=sized))
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(lengths), max_size=len(lengths))) if sized else None
    return lengths, sizes


@given(items(), st.integers(1, 120), st.integers(0, 60))
def test_groups_are_the_best_there_are(
    item: tuple[list[int], list[int] | None], max_tokens: int, overhead: int
) -> None:
    lengths, sizes = item
    groups = length_groups(lengths, max_tokens, overhead, sizes)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or cost(group, lengths, sizes) <= max_tokens for group in groups)
    total = sum(cost(group, lengths, sizes) + overhead for group in groups)
    assert total == least(lengths, max_tokens, overhead, sizes)
    widths = [max(lengths[index] for index in group) for group in groups]
    assert widths == sorted(widths, reverse=True)  # longest first, so that memory peaks at once


def test_groups_by_hand() -> None:
    lengths = [10, 50, 12, 11, 49]
    assert length_groups(lengths, 1000, overhead=48) == [[4, 1], [0, 3, 2]]
    assert length_groups(lengths, 1000, overhead=200) == [[0, 3, 2, 4, 1]]
    assert length_groups(lengths, 1000, overhead=0) == [[1], [4], [2], [3], [0]]
    assert length_groups(lengths, 24, overhead=48) == [[1], [4], [3, 2], [0]]  # 50 and 49 alone, over the budget
    assert length_groups(lengths, 1000, overhead=48, sizes=[1, 1, 40, 1, 1]) == [[4, 1], [0, 3, 2]]
    assert length_groups(lengths, 100, overhead=48, sizes=[1, 1, 40, 1, 1]) == [[4, 1], [2], [0, 3]]
    assert length_groups([], 100) == []


def test_groups_do_not_depend_on_the_order_of_items() -> None:
    lengths = [30, 5, 17, 22, 9, 41, 6]
    one = length_groups(lengths, 64)
    other = length_groups(lengths[::-1], 64)
    assert [[lengths[i] for i in group] for group in one] == [[lengths[::-1][i] for i in group] for group in other]


def test_the_common_beginning() -> None:
    assert common_beginning([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert common_beginning([(1, 2), (3, 2)]) == 0
    assert common_beginning([(1, 2)]) == 2


def test_a_window_that_the_model_does_not_know_is_none() -> None:
    assert window_of(LlamaConfig(**{"sliding_window": 16})) is None  # type: ignore[arg-type]  # an unknown key of config.json
    assert [window_of(kind(sliding_window=16)) for kind in (MistralConfig, Phi3Config, Gemma3TextConfig)] == [16] * 3
    assert window_of(Qwen2Config(sliding_window=16, use_sliding_window=True)) == 16
    assert window_of(Qwen2Config(sliding_window=16)) is None


def test_the_context_is_what_the_short_frequencies_cover() -> None:
    """LongRoPE switches to other ones for a whole batch."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 512}
    long = Phi3Config(**sizes, original_max_position_embeddings=64, rope_parameters=rope)
    assert context_length(long) == 64
    assert context_length(Phi3Config(**sizes)) == context_length(LlamaConfig(**sizes)) == 512
    assert context_length(GPT2Config(n_positions=128)) == 128
    assert context_length(object()) is None


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_copies_to_cuda_do_not_wait(device: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[bool] = []

    def to(self: torch.Tensor, where: Any, non_blocking: bool = False) -> torch.Tensor:
        copies.append(non_blocking)
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    from_host([1, 2], torch.device(device))
    collate([share([(4, 5, 6), (4, 7)])], 0).to(device)
    assert copies == [not waits] * 5
