"""Records check themselves, and a prompt is identified by its first user turn."""

import dataclasses
import hashlib
import math

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import (
    Comparison,
    Correction,
    Critique,
    Demonstration,
    GoalExample,
    Message,
    Origin,
    Rating,
    prompt_id,
)

HERE = Origin("feedback.jsonl", 7)
ASK = (Message("user", "How do I boil an egg?"),)


def test_prompt_id_is_the_hash_of_the_stripped_lower_case_first_user_turn():
    expected = hashlib.sha256(b"how do i boil an egg?").hexdigest()[:16]
    longer = (
        Message("system", "Be brief."),
        Message("user", "  How do I BOIL an egg?\n"),
        Message("assistant", "Ten minutes."),
        Message("user", "And soft?"),
    )
    assert prompt_id(ASK) == prompt_id(longer) == expected
    assert prompt_id(longer[3:]) != expected
    assert prompt_id(()) == ""


def test_records_are_frozen_and_know_their_prompt():
    record = Comparison(prompt=ASK, chosen="Ten minutes.", rejected="No.", origin=HERE)
    assert record.prompt_id == prompt_id(ASK)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.chosen = "x"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ((Message("human", "Hi"),), "unknown role 'human'"),
        ((Message("system", "Be brief."),), "no user turn"),
        ((Message("user", "  "),), "no user turn"),
        ((), "no user turn"),
        ((Message("user", "Hi"), Message("assistant", "Hello")), "ends with the turn of role assistant"),
    ],
)
def test_prompts_that_nothing_can_respond_to_are_refused(prompt, found):
    with pytest.raises(DataError, match=r"feedback\.jsonl, row 7") as caught:
        Demonstration(prompt=prompt, response="x", origin=HERE)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Comparison(prompt=ASK, chosen=" ", rejected="b", origin=HERE), "chosen response is empty"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="", origin=HERE), "rejected response is empty"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="a", origin=HERE), "same text"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="b", margin=-1.0, origin=HERE), "margin is -1.0"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="b", margin=math.nan, origin=HERE), "margin is nan"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="b", chosen_rating=1.5, origin=HERE), "is 1.5"),
        (lambda: Comparison(prompt=ASK, chosen="a", rejected="b", chosen_critiques=("",), origin=HERE), "critique is"),
        (lambda: Critique(prompt=ASK, response="a", critique="\n", origin=HERE), "critique is empty"),
        (lambda: Critique(prompt=ASK, response="a", critique="b", rating=2.0, origin=HERE), "rating is 2.0"),
        (lambda: Rating(prompt=ASK, response="a", rating=math.nan, origin=HERE), "rating is nan"),
        (lambda: Correction(prompt=ASK, response="a", corrected="", origin=HERE), "corrected response is empty"),
        (lambda: Correction(prompt=ASK, response="a", corrected="b", critique="", origin=HERE), "critique is empty"),
        (lambda: GoalExample(example="", origin=HERE), "goal example is empty"),
    ],
)
def test_impossible_records_are_refused_with_their_origin(make, found):
    with pytest.raises(DataError, match=r"feedback\.jsonl, row 7") as caught:
        make()
    assert found in str(caught.value)


def test_a_goal_example_needs_no_prompt():
    assert GoalExample(example="A tidy room.", origin=HERE).prompt_id == ""


def test_a_message_keeps_its_other_fields_and_is_told_apart_by_them():
    turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f"}}],
        "name": "a",
    }
    message = Message.from_dict(turn)
    assert message.to_dict() == turn
    assert message != Message.from_dict(turn | {"tool_calls": []}) and len({message, Message.from_dict(turn)}) == 1
    assert Message.from_dict({"role": "user", "content": "Hi", "name": None}) == Message("user", "Hi")
