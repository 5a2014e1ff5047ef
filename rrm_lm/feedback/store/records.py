"""A store's answers as records for training and as rows of files that are read back as the same records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rrm_lm import storage
from rrm_lm.feedback.records import (
    Comparison,
    Correction,
    Critique,
    Demonstration,
    GoalExample,
    Message,
    Origin,
    Prompt,
    Rating,
    Record,
)
from rrm_lm.feedback.store.events import FIRST, SECOND, About, Answer, Item, State
from rrm_lm.feedback.store.files import Store

Row = dict[str, Any]
# The kinds of rows, each of which is exported to a file of its own because a file has one shape.
COMPARISONS, RESPONSES, DEMONSTRATIONS, GOAL_EXAMPLES = "comparisons", "responses", "demonstrations", "goal_examples"
UNACCEPTABLE = "unacceptable"  # examples of what must not happen; nothing is trained on them yet


def read_store(path: str | os.PathLike[str]) -> State:
    """The state of a store. Raises DataError: no store, or one that cannot be read."""
    with Store(path, writable=False) as store:
        return store.state()


def numbered_records(state: State, file: str) -> Iterator[tuple[int, list[Record]]]:
    """Each answer's number and records. `source` is the person; the origin's row is the number of the answer."""
    for event, answer in state.answers():
        if (item := state.items.get(event.item)) is not None:
            common = {"source": event.person, "origin": Origin(file, event.id)}
            yield event.id, list(_records(item, answer, common))


def _records(item: Item, answer: Answer, common: dict[str, Any]) -> Iterator[Record]:
    prompt: dict[str, Any] = {"prompt": item.prompt, **common}
    compared = preferred(item, answer)
    if compared is not None:
        (chosen, better), (rejected, worse) = compared
        yield Comparison(
            chosen=chosen,
            rejected=rejected,
            margin=answer.strength,
            chosen_critiques=critiques(better),
            rejected_critiques=critiques(worse),
            chosen_rating=better.rating,
            rejected_rating=worse.rating,
            **prompt,
        )
    for response, about in zip(item.responses, answer.about, strict=False):
        if compared is None and item.prompt:
            for text in critiques(about):
                yield Critique(response=response, critique=text, rating=about.rating, **prompt)
            if about.rating is not None:
                yield Rating(response=response, rating=about.rating, **prompt)
        if _is_corrected(response, about) and item.prompt:
            critique = None if compared else "\n".join(critiques(about)) or None
            yield Correction(response=response, corrected=about.corrected, critique=critique, **prompt)
        if about.goal == "goal":
            yield GoalExample(example=response, **prompt)
    if answer.demonstration.strip() and item.prompt:
        yield Demonstration(response=answer.demonstration, **prompt)


def numbered_rows(state: State) -> Iterator[tuple[str, Row]]:
    """Each row of the answers, with its kind. `load_feedback` reads rows of a kind as `numbered_records` gives them."""
    for event, answer in state.answers():
        if (item := state.items.get(event.item)) is not None:
            for kind, row in _rows(item, answer):
                yield kind, {**row, "source": event.person}


def _rows(item: Item, answer: Answer) -> Iterator[tuple[str, Row]]:
    prompt = prompt_row(item.prompt)
    for record in _records(item, answer, {"origin": Origin(item.source, 0)}):
        if isinstance(record, Comparison):
            yield COMPARISONS, comparison_row(record)
    is_compared = preferred(item, answer) is not None
    for response, about in zip(item.responses, answer.about, strict=False):
        row: Row = {}
        if not is_compared:
            row |= {"critique": list(critiques(about))} if about.critiques else {}
            row |= {} if about.rating is None else {"rating": about.rating, "rating_min": 0, "rating_max": 1}
        row |= {"corrected": about.corrected} if _is_corrected(response, about) else {}
        if row and item.prompt:
            yield RESPONSES, {**prompt, "completion": turn(response), **row}
        if about.goal:
            kind, column = (
                (GOAL_EXAMPLES, "goal_example") if about.goal == "goal" else (UNACCEPTABLE, "unacceptable_example")
            )
            yield kind, {**prompt, column: response}
    if answer.demonstration.strip() and item.prompt:
        yield DEMONSTRATIONS, {**prompt, "completion": turn(answer.demonstration)}


def comparison_row(record: Comparison) -> Row:
    """A comparison as a row that `load_feedback` reads back as it is, without its source and subset."""
    row = prompt_row(record.prompt)
    for side in ("chosen", "rejected"):
        row |= {side: turn(getattr(record, side)), f"{side}_critiques": list(getattr(record, f"{side}_critiques"))}
        if (rating := getattr(record, f"{side}_rating")) is not None:
            row[f"{side}_rating"] = rating
    return row if record.margin is None else row | {"margin": record.margin}


def as_answer(record: Record) -> tuple[Item, Answer]:
    """The item that a record is about, and the answer that gives it."""
    if isinstance(record, Comparison):
        item = Item(record.prompt, (record.chosen, record.rejected), source=record.origin.file)
        sides = [
            About(critiques=record.chosen_critiques, rating=record.chosen_rating),
            About(critiques=record.rejected_critiques, rating=record.rejected_rating),
        ]
        first = item.responses[0] == record.chosen
        about = tuple(sides if first else sides[::-1])
        return item, Answer(verdict=FIRST if first else SECOND, strength=record.margin, about=about, shown=(0, 1))
    if isinstance(record, Demonstration):
        return Item(record.prompt, source=record.origin.file), Answer(demonstration=record.response)
    if isinstance(record, GoalExample):
        response, about = record.example, About(goal="goal")
    elif isinstance(record, Critique):
        response, about = record.response, About(critiques=(record.critique,), rating=record.rating)
    elif isinstance(record, Rating):
        response, about = record.response, About(rating=record.rating)
    elif isinstance(record, Correction):
        about = About(corrected=record.corrected, critiques=(record.critique,) if record.critique else ())
        response = record.response
    item = Item(record.prompt, (response,), source=record.origin.file)
    return item, Answer(about=(about,), shown=(0,))


def preferred(item: Item, answer: Answer) -> tuple[tuple[str, About], tuple[str, About]] | None:
    """The better response and the worse one, each with what was said about it; None without a preference."""
    if answer.verdict not in (FIRST, SECOND):
        return None
    sides = list(zip(item.responses, answer.about or (About(), About()), strict=True))
    return (sides[0], sides[1]) if answer.verdict == FIRST else (sides[1], sides[0])


def critiques(about: About) -> tuple[str, ...]:
    """The critiques of a response, each with the part of the response that it is about."""
    return tuple(f'On "{about.quote}": {text}' if about.quote else text for text in about.critiques)


def turn(text: str) -> list[Row]:
    """A response as messages: the reading of files leaves their text unchanged."""
    return [{"role": "assistant", "content": text}]


def prompt_row(prompt: Prompt) -> Row:
    """The column of a prompt, if there is one."""
    return {"prompt": [message.to_dict() for message in prompt]} if prompt else {}


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text, for programs without messages."""
    if len(prompt) == 1 and prompt[0] == Message("user", prompt[0].content):
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)


def _is_corrected(response: str, about: About) -> bool:
    return bool(about.corrected.strip()) and about.corrected.strip() != response.strip()


def store_digest(path: str | os.PathLike[str]) -> str:
    """Identifies what a store's answers say: the bytes of a SQLite file change without that, and the reverse."""
    rows = list(numbered_rows(read_store(Path(path))))
    return hashlib.sha256(storage.json_text(rows, indent=None).encode()).hexdigest()
