"""Prompts and feedback from memory."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from rrm_lm.api.data.rows import read_prompts, read_sets, to_prompt
from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message


def test_messages_keep_their_other_fields() -> None:
    [message] = to_prompt([{"role": "user", "content": "hi", "name": "Ann"}])
    assert message.to_dict() == {"role": "user", "content": "hi", "name": "Ann"}
    assert to_prompt("hi") == to_prompt([{"role": "user", "content": "hi"}]) == (Message("user", "hi"),)


@pytest.mark.parametrize("value", [[{"role": "user"}], [{"content": "hi"}], [{"role": "user", "content": 1}], ["hi"]])
def test_other_shapes_are_refused(value: list) -> None:
    with pytest.raises(DataError, match="a message has no role and content"):
        to_prompt(value)


def dataset_dict() -> DatasetDict:
    def rows(name: str, count: int) -> Dataset:
        prompts = [f"{name} {number}" for number in range(count)]
        return Dataset.from_dict({"prompt": prompts, "chosen": ["a"] * count, "rejected": ["b"] * count})

    return DatasetDict({"train": rows("train", 5), "test": rows("test", 2)})


def test_the_split_of_a_dataset_dict() -> None:
    found = read_sets(dataset_dict(), split="test")
    assert {name: len(feedback.comparisons) for name, feedback in found.items()} == {"rows": 2}
    named = {"mine": dataset_dict()["train"], "other": dataset_dict()["test"]}  # a plain mapping names sets
    assert {name: len(feedback.comparisons) for name, feedback in read_sets(named).items()} == {"mine": 5, "other": 2}
    assert [prompt[0].content for prompt in read_prompts(dataset_dict(), split="test")] == ["test 0", "test 1"]
    assert len(read_prompts(dataset_dict())) == 5
    with pytest.raises(DataError, match="there is no split 'dev'"):
        read_prompts(dataset_dict(), split="dev")
