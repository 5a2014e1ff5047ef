"""Edits move the measure they belong to, and leave the rest of the response as it is."""

import pytest

from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.edits import EDITS, edited
from rrm_lm.feedback.criteria.records import Criterion

PROMPT = "The shop opens at 8 and closes at noon. Nina brings the cake on Friday.\n\nWhen does the shop open?"
OTHER = "Nina brings the cake. She likes it very much."
RESPONSE = "Sure! The shop opens at 8. It is near the old station. Have a lovely day!"


def one(measure: str, response: str, direction: str = "more", other: str = OTHER) -> str | None:
    return edited([Criterion("is so", "it", measure, direction)], PROMPT, response, other).get("it")


@pytest.mark.parametrize(
    ("measure", "response", "expected"),
    [
        ("filler_opening", RESPONSE, "The shop opens at 8. It is near the old station. Have a lovely day!"),
        ("filler_opening", "Sure!\n- At 8.\n- At noon.", "- At 8.\n- At noon."),  # what follows keeps its form
        ("friendly_close", RESPONSE, "Sure! The shop opens at 8. It is near the old station."),
        ("friendly_close", "Have a lovely day!", None),
        ("sentences", RESPONSE, "Sure! The shop opens at 8."),
        ("sentences", "At 8 a.m., e.g. by bus. Or later.", "At 8 a.m., e.g. by bus."),
        ("sentences", "At 8.", f"At 8. {OTHER}"),
        ("list_items", "At 8. On Monday.", "- At 8.\n- On Monday."),
        ("list_items", "- At 8.\n- On Monday.", "At 8. On Monday."),
        ("list_items", "At 8.", None),
        ("finished", "The shop opens at 8 in the morning.", "The shop opens at 8 in"),
        ("finished", "At 8.", None),
        ("on_topic", "The shop opens at 8.", OTHER),
        (
            "quotation",
            "The shop opens at 8.",
            'The shop opens at 8. The text says: "The shop opens at 8 and closes at noon."',
        ),
        ("quotation", "Yes.", None),
        ("hedges", RESPONSE, None),  # no edit moves it
    ],
)
def test_an_edit_of_each_kind(measure: str, response: str, expected: str | None) -> None:
    assert one(measure, response) == expected


def test_an_opening_and_a_close_can_be_added() -> None:
    for measure in ("filler_opening", "friendly_close"):
        added = one(measure, "The shop opens at 8.")
        assert added is not None and "The shop opens at 8." in added
        assert DETECTORS[measure].measure(added, PROMPT) == 1


def test_an_edit_counts_only_if_the_value_of_its_criterion_changes() -> None:
    within = Criterion("has at most three sentences", "it", "sentences", "target", (0, 3))
    assert edited([within], PROMPT, "At 8.", "") == {}
    assert edited([within], PROMPT, "At 8. By bus.", "") == {}  # shorter is as good, so nothing is learned from it
    assert edited([within], PROMPT, "At 8. By bus. Or by train. Come early.", "") != {}


def test_one_text_for_each_criterion_and_none_twice() -> None:
    criteria = [Criterion("is", name, name) for name in ("sentences", "words")]
    found = edited(criteria, PROMPT, "The shop opens at 8. It is near.", OTHER)
    assert found["sentences"] == "The shop opens at 8." and found["words"] not in ("", found["sentences"])


def test_every_edit_belongs_to_a_detector() -> None:
    assert set(EDITS) <= set(DETECTORS)
