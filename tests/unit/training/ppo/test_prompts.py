"""Prompts encoded and checked, and the order they are drawn in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DataCollatorWithPadding

from rrm_lm.errors import ConfigError, DataError, ModelError, RRMError
from rrm_lm.feedback.records import Message
from rrm_lm.training.ppo.prompts import PromptItem, PromptOrder, check_lengths, encode_prompts
from tests.tiny import prompt_of
from tests.tiny_policy import CHAT, PROMPTS

TOKENIZER = CHAT.tokenizer


def test_messages_and_token_rows() -> None:
    items = encode_prompts(PROMPTS, CHAT, TOKENIZER)
    assert [item.prompt for item in items] == PROMPTS
    assert [list(item.ids) for item in items] == [CHAT.prompt_ids(prompt) for prompt in PROMPTS]
    ids = TOKENIZER("who lives in the sea?").input_ids
    (row,) = encode_prompts([{"input_ids": ids}], None, TOKENIZER)
    assert row == PromptItem(tuple(ids), (Message("user", "who lives in the sea?"),))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_collators_padding_is_taken_off_by_its_mask(side: str) -> None:
    """Also where the pad token stands in the prompt itself."""

    def collator(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids, pad = rows[0]["tokens"], [0, 0]
        real = [1] * len(ids)
        both = (pad + ids, [0, 0, *real]) if side == "left" else (ids + pad, [*real, 0, 0])
        return {"input_ids": torch.tensor([both[0]]), "attention_mask": torch.tensor([both[1]])}

    (item,) = encode_prompts([{"tokens": [5, 0, 7]}], None, TOKENIZER, collator)
    assert item.ids == (5, 0, 7)
    plain = DataCollatorWithPadding(TOKENIZER)
    assert encode_prompts([{"input_ids": [5, 6]}], None, TOKENIZER, plain)[0].ids == (5, 6)


@pytest.mark.parametrize(
    ("ids", "mask"), [([0, 0, 5, 0, 7], [0, 0, 1, 1, 1]), ([5, 0, 7, 0, 0], [1, 1, 1, 0, 0]), ([5, 0, 7], [1, 1, 1])]
)
def test_padding_of_tokenized_rows_is_taken_off_by_their_mask(ids: list[int], mask: list[int]) -> None:
    (item,) = encode_prompts([{"input_ids": ids, "attention_mask": mask}], None, TOKENIZER)
    assert item.ids == (5, 0, 7)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ([], "no prompt"),
        ([PROMPTS[0], ()], "row 2"),
        ([(Message("system", "be kind"),)], "no user turn"),
        ([prompt_of("  ")], "no user turn"),
        ([prompt_of("hello", "hi")], "nothing to respond to"),
        ([{"text": "hello"}], "no input_ids"),
        ([{"input_ids": []}], "no tokens"),
        (["hello"], "row 1"),
    ],
)
def test_faulty_prompts_are_named(dataset: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode_prompts(dataset, CHAT, TOKENIZER)


def test_an_overlong_prompt_is_named() -> None:
    items = [PromptItem((1, 2), ()), PromptItem((1,) * 9, ())]
    check_lengths(items, 6, 15)
    check_lengths(items, 6, None)
    with pytest.raises(ConfigError, match=r"9 tokens and a response of 7 .* 15 positions.*row 2"):
        check_lengths(items, 7, 15)


def test_every_error_here_can_be_acted_on() -> None:
    assert issubclass(DataError, RRMError) and issubclass(ModelError, RRMError)


def test_every_pass_takes_every_prompt_once_in_another_order() -> None:
    order = PromptOrder(10, 4, seed=3)
    drawn = [number for update in range(5) for number in order.update(update)]
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert drawn == [number for update in range(5) for number in PromptOrder(10, 4, seed=3).update(update)]
    assert drawn != [number for update in range(5) for number in PromptOrder(10, 4, seed=4).update(update)]


def test_the_order_goes_on_where_it_stopped() -> None:
    order, other = PromptOrder(7, 3, seed=0), PromptOrder(7, 3, seed=0)
    whole = [batch for batch, _ in zip(order, range(9), strict=False)]
    other.start = 4
    assert [batch for batch, _ in zip(other, range(5), strict=False)] == whole[4:]


def test_processes_share_what_one_would_take() -> None:
    one = PromptOrder(7, 4, seed=0)
    two = [PromptOrder(7, 2, seed=0, process=number, processes=2) for number in range(2)]
    for update in range(6):
        assert [number for order in two for number in order.update(update)] == one.update(update)


def test_fewer_prompts_than_a_batch() -> None:
    assert sorted(PromptOrder(2, 4, seed=0).update(0)) == [0, 0, 1, 1]
