"""Rollouts and how they go through the model."""

from __future__ import annotations

import pytest
import torch

from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.rollouts import Grouping, Rollouts, _rows_for, spread
from tests.tiny_policy import CHAT, PROMPTS, tiny_agent

END = CHAT.end_id
RESPONSES = [[40, 41, END], [50], [END], [60, 61, 62, 63, 64], [40, END], [33, 34]]


def rollouts() -> Rollouts:
    items = [PromptItem(tuple(CHAT.prompt_ids(PROMPTS[number])), PROMPTS[number]) for number in (0, 1, 0, 2, 1, 0)]
    return Rollouts.of(items, RESPONSES, CHAT.tokenizer, [END], torch.device("cpu"))


def one_process(number: int) -> int:
    return number


def test_texts_lengths_and_ends() -> None:
    made = rollouts()
    assert made.finished == [True, False, True, False, True, False]
    assert made.texts[2] == ""
    assert made.texts[0] == CHAT.tokenizer.decode([40, 41])
    assert made.lengths.tolist() == [3, 1, 1, 5, 2, 2] and made.width == 5
    assert made.is_response.sum(1).tolist() == [3, 1, 1, 5, 2, 2]
    assert made.lines[4].ids[made.lines[4].response_start :] == (40, END)


def test_all_go_once_and_what_they_begin_with_goes_once() -> None:
    agent, made = tiny_agent(), rollouts()
    groups = Grouping(agent, made.lines, 10_000, one_process)()
    assert sorted(number for group in groups for number in group.episodes) == list(range(6))
    tokens = sum(int(group.batch.is_real.sum()) for group in groups)
    prompts = {line.ids[: line.response_start] for line in made.lines}
    assert tokens < sum(map(len, prompts)) + int(made.lengths.sum())  # less than each prompt once
    for group in groups:
        assert group.lines == [made.lines[number] for number in group.episodes]
        assert len(group.batch.where) == len(group.lines)
        assert group.tokens == group.batch.input_ids.numel()


@pytest.mark.parametrize(
    ("common", "own", "hidden", "rows"),
    [
        (25, [47] * 16, 576, 4),  # SmolLM2 with its system message
        (25, [500] * 4, 576, 4),  # long responses: attention to each other's would cost more than the beginning
        (0, [47] * 16, 576, 16),
        (300, [20] * 8, 576, 1),
        (25, [47], 576, 1),
    ],
)
def test_how_many_share_a_row(common: int, own: list[int], hidden: int, rows: int) -> None:
    assert _rows_for(common, own, hidden) == rows


def test_without_sharing_each_has_its_row() -> None:
    made = rollouts()
    for agent, share in ((tiny_agent(), False), (tiny_agent(sharing=False), True)):
        groups = Grouping(agent, made.lines, 10_000, one_process, share)()
        assert sum(len(group.batch.input_ids) for group in groups) == 6


def test_the_budget_holds_and_the_longest_come_first() -> None:
    made = rollouts()
    groups = Grouping(tiny_agent(), made.lines, 50, one_process)()
    assert len(groups) > 1
    assert all(group.tokens <= 50 for group in groups)
    widths = [group.batch.input_ids.shape[1] for group in groups]
    assert widths == sorted(widths, reverse=True)


def test_a_process_with_fewer_groups_keeps_the_others_company() -> None:
    made = rollouts()
    groups = Grouping(tiny_agent(), made.lines, 10_000, lambda count: count + 2)([1, 4])
    assert [len(group.episodes) for group in groups] == [2, 0, 0]
    assert all(len(group.lines) == 1 for group in groups[1:])


def test_spreading_is_undone_by_the_mask_and_passes_gradients() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    flat = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    wide = spread(flat, mask)
    assert wide.tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    (wide * torch.tensor([[1.0, 10.0, 5.0], [100.0, 5.0, 5.0]])).sum().backward()
    assert flat.grad is not None and flat.grad.tolist() == [1.0, 10.0, 100.0]


def test_all_processes_compare_their_number_of_passes_for_every_mini_batch() -> None:
    """One process may have the same episodes again, or all of them, when another one has not: no call may be saved."""
    calls: list[int] = []

    def count(number: int) -> int:
        calls.append(number)
        return number

    grouping = Grouping(tiny_agent(), rollouts().lines, 10_000, count)
    grouping()
    grouping()
    assert len(calls) == 1  # all episodes: every process has them at the same time
    for episodes in ([1, 4], [4, 1], [], [], range(6), range(6)):
        grouping(episodes)
    assert len(calls) == 7
