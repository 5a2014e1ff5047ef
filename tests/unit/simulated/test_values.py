"""Values in responses: every usual spelling is found, other values and denials are not."""

import pytest

from rrm_lm.simulated.values import counts, exchange, mentions, states

SAID = [
    ("It is on March 4th.", "date", "4 March"),
    ("on the 4th of March", "date", "4 March"),
    ("Mar 4", "date", "4 March"),
    ("Not the Friday, but 4 March.", "date", "4 March"),
    ("May 1, I think", "date", "1 May"),
    ("7:30 am", "time", "7:30"),
    ("at 7.30", "time", "7:30"),
    ("5:30 p.m.", "time", "17:30"),
    ("17:30 h", "time", "17:30"),
    ("at 5 pm", "time", "17:00"),
    ("17 o'clock", "time", "17:00"),
    ("€5", "price", "5 euros"),
    ("5 EUR", "price", "5 euros"),
    ("five euros", "price", "5 euros"),
    ("3 benches", "count", "three"),
    ("Twenty of them", "count", "20"),
    ("anna did", "person", "Anna"),
    ("in the  gym", "place", "the gym"),
    ("I am not sure. Anna.", "person", "Anna"),
]
NOT_SAID = [
    ("March 14th", "date", "4 March"),
    ("March 41", "date", "4 March"),
    ("It is not on 4 March.", "date", "4 March"),
    ("May 12", "date", "1 May"),
    ("7:30 pm", "time", "7:30"),
    ("at 17:30", "time", "7:30"),
    ("15 euros", "price", "5 euros"),
    ("5.50 euros", "price", "5 euros"),
    ("thirteen", "count", "three"),
    ("at 3:00", "count", "three"),
    ("on 3 March", "count", "three"),
    ("the 3rd of March", "count", "three"),
    ("3 euros", "count", "three"),
    ("at 3 pm", "count", "three"),
    ("Annabel", "person", "Anna"),
    ("It isn't Anna who brings it", "person", "Anna"),
    ("Boris brings it rather than Anna", "person", "Anna"),
]


@pytest.mark.parametrize(("text", "kind", "value"), SAID)
def test_usual_spellings_are_found(text: str, kind: str, value: str) -> None:
    assert states(text, kind, value)


@pytest.mark.parametrize(("text", "kind", "value"), NOT_SAID)
def test_other_values_and_denials_are_not(text: str, kind: str, value: str) -> None:
    assert not states(text, kind, value)


def test_a_denied_value_is_still_mentioned() -> None:
    assert mentions("It is not on 4 March.", "date", "4 March")


@pytest.mark.parametrize(
    ("text", "kind", "value", "other", "exchanged"),
    [
        ("On March 4th, not on the 4th of March.", "date", "4 March", "9 May", "On 9 May, not on the 9 May."),
        ("Anna's aunt Annabel", "person", "Anna", "Boris", "Boris's aunt Annabel"),
        ("The gym? Not the gym.", "place", "the gym", "room 12", "Room 12? Not room 12."),
        ("room 12, in room 12", "place", "room 12", "the gym", "the gym, in the gym"),
        ("It costs €5.", "price", "5 euros", "8 euros", "It costs 8 euros."),
    ],
)
def test_a_value_can_be_exchanged(text: str, kind: str, value: str, other: str, exchanged: str) -> None:
    assert exchange(text, kind, value, other) == exchanged
    assert not mentions(exchanged, kind, value)


def test_the_numbers_of_things_are_counted_and_no_other_numbers() -> None:
    text = "1. Ten benches, 2 at 7:30 on 3 May for 5 euros.\n2. One of 12, not 3.5 or 40%; five euros are six coins."
    assert counts(text) == {10, 2, 12, 6}
