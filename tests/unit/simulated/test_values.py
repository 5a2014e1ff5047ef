"""Values in responses: every usual spelling is found, other values and denials are not."""

import pytest

from rrm_lm.simulated.values import mentions, states

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
