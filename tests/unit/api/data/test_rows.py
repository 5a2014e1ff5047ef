"""Prompts and feedback from memory."""

from __future__ import annotations

import pytest

from rrm_lm.api.data.rows import to_prompt
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
