"""Rows about one response: critiques, ratings, corrections, demonstrations, and examples of the goal."""

from __future__ import annotations

from collections.abc import Iterator

from rrm_lm.feedback.reading.formats.pairs import stated_level
from rrm_lm.feedback.reading.formats.row import Row, mean
from rrm_lm.feedback.records import Correction, Critique, Demonstration, GoalExample, Prompt, Rating, Record

HELPSTEER_BEST = 4.0  # attributes are from 0 to 4
CORRECTED = ("corrected", "corrected_response", "refinement", "edited_response")
CRITIQUES = ("critique", "critiques", "feedback")

VERDICTS = {
    1.0: "good great excellent perfect correct right yes true accept accepted approve approved pass passed helpful "
    "safe positive like liked up acceptable",
    0.5: "ok okay fair mixed neutral partial average",
    0.0: "bad poor terrible incorrect wrong no false reject rejected disapprove fail failed unhelpful unsafe harmful "
    "negative dislike disliked down unacceptable",
}
VERDICT_RATINGS = {word: rating for rating, words in VERDICTS.items() for word in words.split()}


def read_response(row: Row) -> Iterator[Record]:
    """Any of critique, rating, verdict and corrected response about one response to a prompt.

    A rating, or else a verdict that is one of the known words, also makes a `Rating`. With `rating_min` and
    `rating_max` columns the rating is scaled from that range to [0, 1]; without, it must lie in [0, 1].
    """
    prompt = row.prompt("prompt", "context")
    response = response_text(row, prompt, "response", "original_response", "completion")
    critiques, corrected = row.texts(*CRITIQUES), row.optional_text(*CORRECTED)
    verdict = row.label("verdict") or None
    rating = _rating(row)
    if rating is None and verdict is not None:
        rating = VERDICT_RATINGS.get(verdict.lower().strip(" .!"))
        if rating is None:
            row.note("a verdict that is no known word, kept in words only")
    if rating is None and corrected is None and not critiques:
        what = f"has the verdict {verdict!r}, which is no known word" if verdict else "has no feedback beside it"
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
    """HelpSteer2 ratings: helpfulness, 0 to 4 (a list of them in its disagreements, of which the mean is taken)."""
    value = row.require("helpfulness")
    if isinstance(value, list):
        row.values = row.values | {"helpfulness": mean([float(item) for item in value])}
    rating = row.number("helpfulness") / HELPSTEER_BEST
    yield Rating(response=row.text("response"), rating=rating, **row.about(row.prompt()))


def read_unpaired(row: Row) -> Iterator[Record]:
    """TRL's unpaired preference (KTO): a completion with a label, true for wanted and false for unwanted."""
    prompt = row.prompt()
    response = response_text(row, prompt, "completion")
    yield Rating(response=response, rating=row.number("label"), **row.about(prompt))


def read_demonstration(row: Row) -> Iterator[Record]:
    """A prompt with a completion (or response) to imitate, or messages whose last turn is the one to imitate."""
    if not row.has("prompt") and row.has("messages"):
        *prompt, last = row.messages("messages")
        if last.role != "assistant":
            row.fail("messages", f"ends with the role {last.role}", "a last turn by the assistant")
        yield Demonstration(response=last.content, **row.about(tuple(prompt)))
        return
    prompt = row.prompt()
    yield Demonstration(response=response_text(row, prompt, "completion", "response"), **row.about(prompt))


def read_goal(row: Row) -> Iterator[Record]:
    """An example of the wanted outcome, with or without the prompt it belongs to."""
    prompt = row.prompt() if row.has("prompt") else ()
    yield GoalExample(example=row.text("goal_example", "example"), **row.about(prompt))


def response_text(row: Row, prompt: Prompt, *names: str) -> str:
    """A response given as text, or as a list of one assistant message (after the prompt's own turns or not)."""
    name = next((name for name in names if row.has(name)), names[0])
    if not isinstance(row.values.get(name), list):
        return row.text(name)
    messages = row.messages(name)
    messages = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if len(messages) != 1 or messages[0].role != "assistant":
        found = ", ".join(message.role for message in messages) or "no turn"
        row.fail(name, f"has {found}", "exactly one turn, by the assistant")
    return messages[0].content


def _rating(row: Row) -> float | None:
    rating = row.optional_number("rating")
    low, high = row.optional_number("rating_min"), row.optional_number("rating_max")
    if rating is None:
        return None
    if low is not None or high is not None:
        low, high = low or 0.0, 1.0 if high is None else high
        if low >= high:
            row.fail("rating_max", f"is {high}, not above rating_min {low}", "rating_min below rating_max")
        rating = (rating - low) / (high - low)
    if not 0.0 <= rating <= 1.0:
        expected = "a rating from 0 (worst) to 1 (best), or columns rating_min and rating_max that say its range"
        row.fail("rating", f"is {row.values['rating']}", expected, "add rating_min and rating_max, or rescale")
    return rating
