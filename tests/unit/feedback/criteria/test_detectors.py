"""Each detector on texts with a known value."""

import math

import pytest

from rrm_lm.feedback.criteria.detectors import DETECTORS, split_sentences

CASES = [
    ("words", "Four days in the fridge.", "", 5),
    ("sentences", "It costs 3.5 euros, e.g. in Bonn. Buy two!\nGo by bus", "", 3),
    ("words_per_sentence", "One two three. Four.", "", 2),
    ("distinct_words", "Rice keeps days; rice keeps.", "How long does rice keep?", 1),
    ("repetition", "a b c a b c a b c", "", 4 / 7),
    ("list_items", "Take:\n- salt\n* rice\n2) water\nEnd - here", "", 3),
    ("headings", "# One\ntext\n## Two\ntext", "", 2),
    ("bold", "**a** and **b**, 2 ** 3", "", 2),
    ("paragraphs", "a\nb\n\nc", "", 2),
    ("emphasis", "No! STOP it \U0001f600", "", 3),
    ("filler_opening", "Great question! Four days.", "", 1),
    ("filler_opening", "Surely four days.", "", 0),
    ("filler_opening", "Four days.", "", 0),
    ("friendly_close", "Four days. Enjoy your meal!", "", 1),
    ("friendly_close", "Enjoy it cold. It keeps four days.", "", 0),
    ("finished", "It keeps for about four days when", "", 0),
    ("finished", "It keeps for four days.", "", 1),
    ("prompt_overlap", "Rice keeps four days.", "How long does rice keep in a fridge?", 2 / 4),
    ("on_topic", "Rice is tasty.", "How long does rice keep?", 1 / 2),
    ("fits_question", "On 5 April.", "When does the choir meet?", 1),
    ("fits_question", "In the hall.", "When does the choir meet?", 0),
    ("fits_question", "Lots.", "How many days?", 0),
    ("fits_question", "Boil it.", "Tell me about rice.", 0.5),
    ("numbers", "From 9:30 to 11, 4.5 euros", "", 3),
    ("sources", "According to the WHO, see https://who.int", "", 2),
    ("quotation", 'The note says "meets on 5 April".', "The choir meets on 5 April.", 4 / 7),
    ("quotation", 'He says "something else".', "The choir meets on 5 April.", 0),
    ("copied", "the choir meets on 5 April", "The choir meets on 5 April.", 1),
    ("examples", "Fruit, for example apples, such as these", "", 2),
    ("steps", "First wash it. Then add salt.", "", 2),
    ("hedges", "It might, perhaps, take four or five days there.", "", 100 * 2 / 10),
    ("first_person", "I think you like me and my hat a lot.", "", 100 * 3 / 10),
    ("questions_back", "Which one? Red. Or blue?", "", 2),
    ("politeness", "Thank you, please come in here now, dear friend ok.", "", 100 * 3 / 10),
    ("warmth", "A wonderful day for a terrible thing in the old town.", "", 0),
    ("long_words", "ab abcd", "", 3),
    ("refusal", "I'm sorry, but I can't help with that.", "", 1),
]


@pytest.mark.parametrize(("name", "response", "prompt", "value"), CASES, ids=lambda one: str(one)[:30])
def test_values(name: str, response: str, prompt: str, value: float) -> None:
    assert DETECTORS[name].measure(response, prompt) == pytest.approx(value)


def test_every_detector_has_a_case_a_docstring_and_a_scale() -> None:
    assert {name for name, *_ in CASES} == set(DETECTORS)
    assert all(one.measure.__doc__ and one.scale > 0 for one in DETECTORS.values())


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "\u4f60\u597d\uff01", "- " * 5000, '"' * 5000, "a" * 100_000, "*#" * 9000]
)
def test_any_text_has_a_finite_value(text: str) -> None:
    for one in DETECTORS.values():
        assert math.isfinite(one.measure(text, "Why?")) and math.isfinite(one.measure("Yes.", text))


def test_abbreviations_and_decimals_end_no_sentence() -> None:
    assert split_sentences('Dr. Who paid 3.5 pounds, i.e. less. "Really?" he said.') == [
        "Dr. Who paid 3.5 pounds, i.e. less.",
        '"Really?',
        "he said.",
    ]
