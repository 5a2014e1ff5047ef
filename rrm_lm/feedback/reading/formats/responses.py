"""Rows about one response: critiques, ratings, corrections, demonstrations, and goal examples."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rrm_lm.feedback.reading.formats.pairs import stated_level
from rrm_lm.feedback.reading.formats.row import Row, as_number, mean
from rrm_lm.feedback.records import Correction, Critique, Demonstration, GoalExample, Prompt, Rating, Record

HELPSTEER_BEST = 4.0  # attributes range from 0 to 4
CORRECTED = ("corrected", "corrected_response", "refinement", "edited_response")
CRITIQUES = ("critique", "critiques", "feedback")
RESPONSES = ("response", "original_response", "completion")

VERDICTS = {
    1.0: "good great excellent perfect correct right yes true accept accepted approve approved pass passed helpful "
    "safe positive like liked up thumbsup 👍 ✅ acceptable desirable chosen preferred",
    0.5: "ok okay fair mixed neutral partial average",
    0.0: "bad poor terrible incorrect wrong no false reject rejected disapprove fail failed unhelpful unsafe harmful "
    "negative dislike disliked down thumbsdown 👎 ❌ notok unacceptable undesirable dispreferred",
}
VERDICT_RATINGS = {word: rating for rating, words in VERDICTS.items() for word in words.split()}


def read_response(row: Row) -> Iterator[Record]:
    """Any of critique, rating, label, verdict and corrected response about one response to a prompt.

    The rating is the column `rating`, else `label`, else a verdict in known words. With the columns `rating_min` and
    `rating_max` it is scaled from that range. Otherwise it must be in [0, 1] or on the scale inferred from the file.
    """
    prompt, response = exchange(row)
    critiques, corrected = row.texts(*CRITIQUES), row.text(*CORRECTED) if row.has(*CORRECTED) else None
    verdict = row.label("verdict") or None
    rating = _rating(row)
    if rating is None and verdict is not None:
        rating = verdict_rating(verdict)
        if rating is None:
            row.note("a verdict that is not a known word, kept in words only")
    if rating is None and corrected is None and not critiques:
        what = f"has the verdict {verdict!r}, which is not a known word" if verdict else "comes without feedback"
        expected = "a critique, a rating, a corrected response, or a verdict such as good or bad"
        row.fail("response", what, expected, "fill one in or remove the row")
    for critique in critiques:
        level = stated_level(critique) if rating is None else rating
        yield Critique(response=response, critique=critique, rating=level, verdict=verdict, **row.about(prompt))
    if rating is not None:
        yield Rating(response=response, rating=rating, **row.about(prompt))
    if corrected is not None and corrected.strip() == response.strip():
        row.drop("the corrected response is the response itself")
    elif corrected is not None:
        critique = "\n".join(critiques) or None
        yield Correction(response=response, corrected=corrected, critique=critique, **row.about(prompt))


def read_helpsteer2(row: Row) -> Iterator[Record]:
    """HelpSteer2 ratings: helpfulness, 0 to 4; a list of annotators' ratings is averaged."""
    value = row.require("helpfulness")
    if isinstance(value, list):
        row.values = row.values | {"helpfulness": mean([float(item) for item in value])}
    rating = row.number("helpfulness") / HELPSTEER_BEST
    yield Rating(response=row.text("response"), rating=rating, **row.about(row.prompt()))


def read_demonstration(row: Row) -> Iterator[Record]:
    """A prompt with a response to imitate, or messages whose last turn is to be imitated."""
    prompt, response = exchange(row)
    yield Demonstration(response=response, **row.about(prompt))


def read_goal(row: Row) -> Iterator[Record]:
    """An example of the wanted outcome, with or without the prompt it belongs to."""
    prompt = row.prompt() if row.has("prompt") else ()
    yield GoalExample(example=row.text("goal_example", "example"), **row.about(prompt))


def exchange(row: Row) -> tuple[Prompt, str]:
    """A prompt and the response to it, from their columns or from the column `messages`."""
    if "messages" in row.table.columns and not row.has(*RESPONSES):
        *prompt, last = row.messages("messages")
        if last.role != "assistant":
            row.fail("messages", f"ends with the role {last.role}", "a last turn by the assistant")
        return row.in_context(tuple(prompt)), row.one_response("messages", (last,))
    prompt = row.prompt("prompt", "context")
    return prompt, row.response(row.first(*RESPONSES), prompt)


def verdict_rating(value: str) -> float | None:
    """The rating that a word such as good or bad stands for; None if it is not a known word."""
    return VERDICT_RATINGS.get(re.sub(r"[\s_.!-]", "", value.lower()))


def _rating(row: Row) -> float | None:
    name = row.first("rating", "label")
    if as_number(row.values.get(name)) is None and (stated := verdict_rating(row.label(name))) is not None:
        return stated
    value = row.optional_number(name)
    low, high = row.optional_number("rating_min"), row.optional_number("rating_max")
    if value is None:
        return None
    if low is None and high is None:
        low, high = row.table.scales.get(name, (0.0, 1.0))
    low, high = low or 0.0, 1.0 if high is None else high
    if low >= high:
        row.fail("rating_max", f"is {high}, not above rating_min {low}", "rating_min below rating_max")
    rating = (value - low) / (high - low)
    if not 0.0 <= rating <= 1.0:
        expected = "a rating from 0 (worst) to 1 (best), or columns rating_min and rating_max with its range"
        row.fail(name, f"is {value:g}", expected, "add rating_min and rating_max, or rescale")
    return rating
