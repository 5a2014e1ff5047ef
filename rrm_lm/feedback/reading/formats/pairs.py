"""Rows with two responses: preference pairs, graded pairs, and summaries with language feedback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rrm_lm.feedback.reading.formats.row import Row, mean
from rrm_lm.feedback.reading.formats.structure import HH, dialect_of, is_transcript, split_turns
from rrm_lm.feedback.records import Comparison, Correction, Critique, Message, Prompt, Rating, Record

TIE_TEXTS = "tie: chosen and rejected are the same text"
TIE_GRADE = "tie: the overseer preferred neither response"
HELPFULNESS_LEVELS = {"not": 0.0, "slightly": 0.25, "partially": 0.5, "mostly": 0.75, "perfectly": 1.0}
STATED_LEVEL = re.compile(r"\W*The response is (not|slightly|partially|mostly|perfectly) helpful", re.IGNORECASE)


@dataclass(frozen=True)
class Side:
    """One response of a pair with its critiques and rating. Ratings are in [0, 1]."""

    response: str
    critiques: tuple[str, ...] = ()
    rating: float | None = None


def read_preference(row: Row) -> Iterator[Record]:
    """Chosen against rejected: TRL's shapes, transcripts, UltraFeedback, and pairs with critiques and ratings."""
    prompt, chosen, rejected = _prompt_and_responses(row)
    margin = row.optional_number("margin")
    rated = [f"{side}_rating" for side in ("chosen", "rejected")]
    difference = None
    if row.has("score_chosen") and row.has("score_rejected"):
        rated = ["score_chosen", "score_rejected"]
        difference = row.number(rated[0]) - row.number(rated[1])
        if margin is None and difference < 0:
            row.note("the rejected response is rated higher, so the margin was left out")
        elif margin is None:
            margin = difference
    ratings = [row.optional_rating(name) for name in rated]
    best = Side(chosen, row.texts("chosen_critiques", "chosen_critique"), ratings[0])
    other = Side(rejected, row.texts("rejected_critiques", "rejected_critique"), ratings[1])
    if margin == difference == 0:  # the sides come from the scores (UltraFeedback), so at equal ones they are arbitrary
        row.drop(TIE_GRADE)
        yield from words(row, prompt, best, other)
    else:
        yield from pair(row, prompt, best, other, margin=margin)


def read_graded(row: Row) -> Iterator[Record]:
    """HelpSteer2-Preference and HelpSteer3: a grade from -3 (first much better) to 3 (second much better)."""
    prompt = row.prompt("context", "prompt")
    first, second = _side(row, 1), _side(row, 2)
    grade = row.number("overall_preference" if "overall_preference" in row.values else "preference_strength")
    # No ratings of a tie: a comparison would be derived from them although the overseer made none.
    yield from _graded(row, prompt, (first, second), grade, with_ratings=False)


def read_feedback_pair(row: Row) -> Iterator[Record]:
    """HelpSteer3-Feedback: two responses with critiques that open by stating a level, and no preference.

    The response with the higher mean level is chosen, with the difference (in [0, 1]) as margin.
    """
    prompt = row.prompt("context", "prompt")
    first, second = _side(row, 1), _side(row, 2)
    grade = 0.0 if first.rating is None or second.rating is None else second.rating - first.rating
    yield from _graded(row, prompt, (first, second), grade)


def _graded(
    row: Row, prompt: Prompt, sides: tuple[Side, Side], grade: float, *, with_ratings: bool = True
) -> Iterator[Record]:
    """The records of two responses: a negative grade means that the first is better, 0 that it is a tie."""
    if grade == 0:
        row.drop(TIE_GRADE)
        yield from words(row, prompt, *sides, with_ratings=with_ratings)
    else:
        yield from pair(row, prompt, *(sides if grade < 0 else sides[::-1]), margin=abs(grade))


def read_slf5k(row: Row) -> Iterator[Record]:
    """SLF5K: a comparison of two summaries, and a third summary with feedback and a person's ideal summary."""
    community = f" from r/{row.label('subreddit')}" if row.has("subreddit") else ""
    request = f"Summarize this post{community} in a few sentences.\n\nTitle: {row.text('title')}\n\n{row.text('post')}"
    prompt = row.in_context((Message("user", request),))
    if row.has("comparison_preference"):
        answer = row.label("comparison_preference")
        if answer not in ("Summary A", "Summary B"):
            row.fail("comparison_preference", f"is {answer!r}", "'Summary A' or 'Summary B'")
        names = ("A", "B") if answer.endswith("A") else ("B", "A")
        best, other = (Side(row.text(f"generated_summary_for_comparison_{name}")) for name in names)
        yield from pair(row, prompt, best, other)
    if not row.has("feedback"):
        return
    response, critique = row.text("generated_summary_for_feedback"), row.text("feedback")
    row.subset = row.label("feedback_class")
    yield Critique(response=response, critique=critique, **row.about(prompt))
    if row.has("ideal_human_summary"):
        corrected = row.text("ideal_human_summary")
        yield Correction(response=response, critique=critique, corrected=corrected, **row.about(prompt))


def pair(row: Row, prompt: Prompt, best: Side, other: Side, *, margin: float | None = None) -> Iterator[Record]:
    """A comparison. Responses equal up to whitespace are counted as a tie, and their critiques are kept."""
    if best.response.strip() == other.response.strip():
        row.drop(TIE_TEXTS)
        yield from words(row, prompt, best, other)
        return
    yield Comparison(
        chosen=best.response,
        rejected=other.response,
        margin=margin,
        chosen_critiques=best.critiques,
        rejected_critiques=other.critiques,
        chosen_rating=best.rating,
        rejected_rating=other.rating,
        **row.about(prompt),
    )


def words(row: Row, prompt: Prompt, *sides: Side, with_ratings: bool = True) -> Iterator[Record]:
    """Critiques of responses without a comparison, and the ratings by the same authors."""
    for side in sides:
        for critique in side.critiques:
            level = stated_level(critique)
            rating = side.rating if level is None else level
            yield Critique(response=side.response, critique=critique, rating=rating, **row.about(prompt))
        if with_ratings and side.critiques and side.rating is not None:
            yield Rating(response=side.response, rating=side.rating, **row.about(prompt))


def stated_level(critique: str) -> float | None:
    """The rating that a HelpSteer3 critique states in its opening words, in [0, 1]; None if it states none."""
    found = STATED_LEVEL.match(critique)
    return HELPFULNESS_LEVELS[found[1].lower()] if found else None


def _side(row: Row, number: int) -> Side:
    """Response 1 or 2 with the annotators' critiques of it, and the mean of the levels they state.

    Critiques of the pair are used only if there are none of this response alone. They are rewritten for this response:
    "@Response 2 is better than @Response 1" becomes "This response is better than the other response" for the second.
    """
    response = row.text(f"response{number}", f"response_{number}")
    people = row.rows("individual_preference")
    own = f"feedback{number}"
    critiques = row.texts(own) + tuple(text for person in people for text in person.texts(own))
    rating = mean([level for critique in critiques if (level := stated_level(critique)) is not None])
    if not critiques:
        about_both = [text for person in people for text in person.texts("reasoning")]
        justification = " ".join(row.texts("preference_statement", "preference_elaboration"))
        critiques = tuple(_from_side(text, number) for text in [*about_both, justification] if text)
    return Side(response, critiques, rating)


def _from_side(text: str, number: int) -> str:
    def name(found: re.Match[str]) -> str:
        start = found.start() == 0 or text[: found.start()].rstrip()[-1:] in ".!?\n"
        which = "this response" if int(found[1]) == number else "the other response"
        return which.capitalize() if start else which

    return re.sub(r"@?\bResponse ([12])\b", name, text).strip()


def _prompt_and_responses(row: Row) -> tuple[Prompt, str, str]:
    """The prompt, given or the shared beginning of chosen and rejected, and the two responses."""
    values = row.require("chosen"), row.require("rejected")
    if all(isinstance(value, list) for value in values):
        talks = row.messages("chosen"), row.messages("rejected")
    elif not any(isinstance(value, list) for value in values) and all(map(is_transcript, values)):
        talks = split_turns(values[0], dialect_of(values[0]) or HH), split_turns(values[1], dialect_of(values[1]) or HH)
    else:
        values = row.text("chosen"), row.text("rejected")
        if "prompt" not in row.table.columns:
            return _split_shared_text(row, *values)
        prompt = row.prompt()  # raises an error without a prompt: the shared beginning is not a prompt
        return prompt, row.response("chosen", prompt), row.response("rejected", prompt)
    if not row.has("prompt"):
        prompt, chosen, rejected = split_shared(row, *talks)
        if prompt or "prompt" not in row.table.columns:
            return row.in_context(prompt), chosen, rejected
    prompt = row.prompt()
    rests = [row.after(prompt, talk) for talk in talks]
    if all(len(rest) == 1 and rest[0].role == "assistant" for rest in rests):
        sides = [row.one_response(name, rest) for name, rest in zip(("chosen", "rejected"), rests, strict=True)]
        return prompt, row.without_prompt(sides[0], prompt), row.without_prompt(sides[1], prompt)
    shared, chosen, rejected = split_shared(row, *talks)  # conversations that begin before the prompt
    asked = [message.content.strip() for message in prompt if message.role == "user"]
    if not asked or asked[-1] not in [message.content.strip() for message in shared if message.role == "user"]:
        row.fail("prompt", "is not in the conversations of chosen and rejected", "one prompt")
    return row.in_context(shared), chosen, rejected


def split_shared(
    row: Row, first: Prompt, second: Prompt, names: tuple[str, str] = ("chosen", "rejected")
) -> tuple[Prompt, str, str]:
    """Split two whole conversations: the shared turns are the prompt, the next turn is the response."""
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    responses = [row.one_response(name, talk[shared:]) for name, talk in zip(names, (first, second), strict=True)]
    return first[:shared], responses[0], responses[1]


def _split_shared_text(row: Row, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """TRL's implicit prompt in plain text: the shared beginning, up to its last whole word, is the user turn."""
    if chosen == rejected:
        return (), chosen, rejected
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        what = "is missing, and chosen and rejected do not begin with a shared prompt"
        row.fail("prompt", what, "a column with the prompt", "add the prompt, or name its column with --columns")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text[shared:].strip():
            row.fail(name, "has nothing after the shared opening, so the response is empty", "a response")
    prompt = row.in_context((Message("user", chosen[:shared].strip()),))
    return prompt, chosen[shared:].strip(), rejected[shared:].strip()
