"""The state is a fold over events: the newest answer counts, undo restores the one before, retraction leaves none."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import ANSWER, ITEM, RETRACT, UNDO, About, Answer, Event, Item, State

PROMPT = (Message("user", "Capital of Norway?"),)
PAIR = Item(PROMPT, ("Rome.", "Oslo."))
PEOPLE, ITEMS = st.sampled_from(["anna", "ben", ""]), st.sampled_from(["x", "y", ""])
EVENTS = st.lists(
    st.tuples(st.sampled_from([ANSWER, UNDO, RETRACT, "later kind"]), PEOPLE, ITEMS, st.integers(0, 12), PEOPLE),
    max_size=14,
).map(
    lambda rows: [
        Event(
            n,
            "",
            person,
            kind,
            item,
            {ANSWER: {"strength": float(n)}, UNDO: {"answer": place}}.get(kind, {"person": other}),
        )
        for n, (kind, person, item, place, other) in enumerate(rows, 1)
    ]
)


def by_hand(events: list[Event]) -> dict[tuple[str, str], int]:
    """The same rules without the fold: the number of the answer that counts, by person and item."""
    left: dict[int, Event] = {}
    for event in events:
        if event.kind == ANSWER:
            left[event.id] = event
        elif event.kind == UNDO and event.body["answer"] in left and left[event.body["answer"]].person == event.person:
            del left[event.body["answer"]]
        elif event.kind == RETRACT:
            who = event.body["person"]
            left = {n: e for n, e in left.items() if (who and e.person != who) or (event.item and e.item != event.item)}
    return {(event.person, event.item): number for number, event in left.items()}


def counted(state: State) -> dict[tuple[str, str], int]:
    return {(event.person, event.item): event.id for event, _ in state.answers()}


@given(EVENTS)
def test_the_fold_follows_the_rules(events: list[Event]) -> None:
    assert counted(State().after(events)) == by_hand(events)


@given(EVENTS, st.integers(0, 14))
def test_events_may_be_folded_in_parts(events: list[Event], cut: int) -> None:
    state = State().after(events[:cut])
    assert counted(state.after(events[cut:])) == counted(State().after(events))
    assert counted(state) == counted(State().after(events[:cut]))  # the earlier state is as it was


@given(EVENTS, PEOPLE, ITEMS)
def test_undo_restores_what_was_there(events: list[Event], person: str, item: str) -> None:
    answer = Event(100, "", person, ANSWER, item, {"verdict": "skip"})
    state = State().after([*events, answer])
    assert state.last(person) == answer and state.answer(person, item) == Answer(verdict="skip")
    state.apply(Event(101, "", person, UNDO, "", {"answer": 100}))
    assert counted(state) == counted(State().after(events))


@given(EVENTS, PEOPLE)
def test_nothing_of_a_retracted_person_is_left(events: list[Event], person: str) -> None:
    state = State().after([*events, Event(100, "", "", RETRACT, "", {"person": person})])
    assert not state.answers(person or None) and state.last(person) is None


def test_a_pair_has_one_name_in_either_order_and_notes_follow_their_response() -> None:
    other = Item(PROMPT, ("Oslo.", "Rome."), notes=(("right",), ("wrong",)))
    assert other.id == PAIR.id and other.responses == ("Oslo.", "Rome.")
    assert Item(PROMPT, ("Rome.", "Oslo."), notes=(("wrong",), ("right",))).notes == (("right",), ("wrong",))
    assert Item.from_dict(other.to_dict()) == other


@pytest.mark.parametrize(
    ("responses", "what"),
    [(("a", "b", "c"), "3 responses"), (("a", " a"), "equal"), (("a", " "), "empty"), (("a", "\ud800"), "surrogate")],
)
def test_an_item_is_checked(responses: tuple[str, ...], what: str) -> None:
    with pytest.raises(DataError, match=what):
        Item(PROMPT, responses)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(), "nothing was answered"),
        (Answer(strength=2.0), "nothing was answered"),
        (Answer(verdict="best"), "not a verdict"),
        (Answer(verdict="tie", strength=float("nan")), "number"),
        (Answer(about=(About(rating=2.0), About())), "rating"),
        (Answer(about=(About(goal="perhaps"), About())), "goal"),
        (Answer(about=(About(critiques=(" ",)), About())), "critique is empty"),
        (Answer(about=(About(rating=1.0),)), "other responses"),
        (Answer(demonstration="\udc00"), "surrogate"),
    ],
)
def test_an_answer_is_checked(answer: Answer, what: str) -> None:
    with pytest.raises(DataError, match=what):
        answer.check(PAIR)


def test_a_verdict_needs_two_responses() -> None:
    with pytest.raises(DataError, match="two responses"):
        Answer(verdict="tie").check(Item(PROMPT, ("a",)))
    Answer(verdict="skip").check(Item(PROMPT))


def test_an_answer_is_the_same_after_json() -> None:
    answer = Answer(
        verdict="tie", about=(About(critiques=("a",), rating=0.5), About()), criteria=("true",), shown=(1, 0)
    )
    assert Answer.from_dict(asdict(answer)) == answer


def test_items_come_in_order_and_once() -> None:
    events = [Event(n, "", "", ITEM, PAIR.id, PAIR.to_dict()) for n in (1, 2)]
    assert list(State().after(events).items.values()) == [PAIR]
