"""Each way to say what is wanted, as a plain form; undo, changing, several people, and the overview."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.asking.forms import fill_form, read_answer
from rrm_lm.asking.items import check_unchanged, items_of_responses
from rrm_lm.asking.sampling import waiting
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.criteria.records import Criterion, write_criteria
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import ANSWER, FIRST, SECOND, Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments

MakePage = Callable[..., Any]


def order_of(page: Any, name: str) -> tuple[Item, tuple[int, ...]]:
    item = page.store.state().items[name]
    return item, page.pages.desk.order(page.pages.args.everybody[0], item)


def test_every_kind_of_feedback(page: MakePage) -> None:
    one = page()
    first, second, third = (one.fields()["item"], "", "")
    assert one.answer(verdict="2", critique_0="Says it.", quote_0="answer", rating_1="2").status_code == 200
    second = one.fields()["item"]
    one.answer(verdict="0", corrected_1="A better answer.\r\nTwo lines.", goal_0="goal", goal_1="unacceptable")
    third = one.fields()["item"]
    one.answer(verdict="4", rating_0="5", rating_1="1", demonstration="Mine.")
    assert len({first, second, third}) == 3
    found = load_feedback(str(one.store.path))
    assert found.sizes() == {
        "comparisons": 2, "ratings": 2, "demonstrations": 1, "corrections": 1, "goal_examples": 1,
    }  # fmt: skip
    item, shown = order_of(one, first)
    comparison = found.comparisons[0]
    assert comparison.chosen == item.responses[shown[0]] and comparison.margin == 2
    assert comparison.chosen_critiques == ('On "answer": Says it.',) and comparison.rejected_rating == 0.25
    item, shown = order_of(one, second)
    assert found.corrections[0].response == item.responses[shown[1]]
    assert found.corrections[0].corrected == "A better answer.\nTwo lines."
    assert found.goal_examples[0].example == item.responses[shown[0]]
    assert [rating.rating for rating in found.ratings] == [1.0, 0.0]
    event = one.store.state().answers()[0][0]
    assert (
        event.time.endswith("+00:00")
        and tuple(event.body["shown"]) == order_of(one, first)[1]
        and event.body["seconds"] >= 0
    )
    one.answer(verdict="s")
    text = one.get()
    assert "Thank you, that was the last one" in text and "Undo my last answer" in text


@pytest.mark.parametrize("choice", "12345670s")
def test_the_form_shows_the_answer_that_it_gave(choice: str) -> None:
    item = Item((Message("user", "Q?"),), ("a", "b"))
    fields = {"verdict": choice, "rating_0": "4", "critique_1": "x", "goal_1": "goal", "criterion true": "on"}
    for shown in ((0, 1), (1, 0)):
        answer = read_answer(fields, item, shown)
        assert fill_form(answer, shown) == fields
        if choice == "1":
            assert (answer.verdict == FIRST) == (shown == (0, 1)) and answer.strength == 3


def test_a_page_from_before_a_restart_with_another_seed_keeps_its_order(page: MakePage) -> None:
    one = page()
    for _ in range(4):
        item, before = order_of(one, one.fields()["item"])
        form, one.pages.desk.seed = one.fields(), one.pages.desk.seed + 1
        assert one.client.post("/answer", data={**form, "verdict": "1", "critique_1": "B is poor."}).status_code == 200
        answer = one.store.state().answer(one.pages.args.everybody[0], item.id)
        assert answer.shown == before and answer.verdict == (FIRST if before == (0, 1) else SECOND)
        assert answer.about[before[1]].critiques == ("B is poor.",)


@pytest.mark.parametrize("shown", ["", "0", "0 0", "1 2", "a b", "0 1 2"])
def test_an_impossible_order_is_refused(shown: str, page: MakePage) -> None:
    found = page().answer(verdict="1", shown=shown)
    assert found.status_code == 422 and "in which order" in found.text and not page().store.state().answers()


def test_an_outcome_without_a_request_asks_for_no_answer_of_ones_own(page: MakePage) -> None:
    one = page()
    goal = Item((), ("The lake is clean.",))
    one.store.add_items([goal])
    address = f"/item/{goal.id}"
    assert "demonstration" not in one.get(address)
    refused = one.answer(address, goal_0="goal", demonstration="Mine.")
    assert refused.status_code == 422 and "no request to write an answer to" in refused.text
    # A store of an earlier version may hold such an answer.
    one.store.append(ANSWER, person="anna", item=goal.id, body={"demonstration": "Mine."})
    one.answer(address, goal_0="goal")
    assert load_feedback(str(one.store.path)).sizes() == {"goal_examples": 1}


def test_whoever_answers_first_is_not_kept_waiting_for_the_others(store: Store) -> None:
    args = AskArguments(people=["anna", "ben"], overlap=2)
    assert waiting(store.state(), args) == 4
    for name in list(store.state().items)[:3]:
        store.append(ANSWER, person="anna", item=name, body={"verdict": "tie"})
    assert waiting(store.state(), args) == 1
    alone = AskArguments(people=["anna", "ben"])
    assert waiting(store.state(), alone) == 1


def test_an_edit_that_changes_nothing_is_no_correction() -> None:
    item = Item((Message("user", "Q?"),), ("a", "b"))
    assert not read_answer({"corrected_0": " a\n", "corrected_1": ""}, item, (0, 1)).says_something()


def test_the_total_counts_answers_that_a_model_has_not_written_yet(page: MakePage) -> None:
    one = page()
    one.pages.desk.expected = 30
    one.answer(verdict="2")
    assert "1 of 30" in one.get()


def test_a_script_gets_the_next_item_in_reply_to_an_answer(page: MakePage) -> None:
    one = page()
    fields = one.fields()
    form = {**fields, "verdict": "2"}
    replies = [one.client.post("/answer", data=form, headers={"X-Next": "page"}) for _ in range(2)]  # sent again
    shown = [re.findall(r'name="item" value="([^"]*)"', reply.text) for reply in replies]
    assert [reply.history for reply in replies] == [[], []] and shown[0] == shown[1] == [one.fields()["item"]]
    assert shown[0] != [fields["item"]] and len(one.store.state().answers()) == 1


def test_an_empty_answer_is_not_stored_and_what_was_typed_stays(page: MakePage) -> None:
    one = page()
    found = one.answer(quote_0="only a quote")
    assert found.status_code == 422 and "Nothing was answered" in found.text
    assert not one.store.state().answers()


def test_undo_and_change(page: MakePage) -> None:
    one = page()
    name = one.fields()["item"]
    one.answer(verdict="1", critique_0="First thought.")
    back = one.undo()
    assert back.url.path == f"/item/{name}" and not one.store.state().answers()
    one.answer(f"/item/{name}", verdict="1", critique_0="First thought.")
    text = one.get("/answers")
    assert f'href="/item/{name}"' in text and "1 preference, 1 critique" in text
    assert "You are changing an earlier answer" in (text := one.get(f"/item/{name}")) and "First thought." in text
    one.answer(f"/item/{name}", verdict="7")
    [(_, answer)] = one.store.state().answers()
    assert answer.strength == 3 and not answer.about
    one.undo()  # the earlier answer counts again
    [(_, answer)] = one.store.state().answers()
    assert answer.about
    one.undo()
    assert one.undo().status_code == 200 and not one.store.state().answers()


def test_a_doubled_form_is_stored_once(page: MakePage) -> None:
    one = page()
    fields = one.fields() | {"verdict": "1"}
    for _ in range(3):
        assert one.client.post("/answer", data=fields).status_code == 200
    assert len(one.store.events()) == 4 + 1


def test_items_are_not_given_to_two_people_at_once(page: MakePage) -> None:
    anna, ben = page("anna", people=["anna", "ben"]), page("ben")
    assert [who.fields()["item"] for who in (anna, ben, anna, ben)].count(anna.fields()["item"]) == 2
    for _ in range(2):
        anna.answer(verdict="1")
        ben.answer(verdict="1")
    for who in (anna, ben):
        assert "that was the last one" in who.get()
    assert len({event.item for event, _ in anna.store.state().answers()}) == 4
    assert "Hello ben" in ben.client.get(f"/join/{ben.client.cookies['person']}").text


def test_overlap_gives_each_item_to_several_people(page: MakePage) -> None:
    people = [page(name, people=["anna", "ben", "carl"], overlap=2) for name in ("anna", "ben", "carl")]
    for _ in range(4):
        for one in people:
            if 'action="/answer"' in one.get():
                one.answer(verdict="1")
    state = people[0].store.state()
    assert [len(state.people_of(name)) for name in state.items] == [2, 2, 2, 2]


def test_a_lease_expires(page: MakePage) -> None:
    anna, ben = page("anna", people=["anna", "ben"], lease=0.2), page("ben")
    kept = anna.fields()["item"]
    assert kept not in {item.id for item in ben.pages.desk.open_items("ben")}
    time.sleep(0.25)
    assert kept in {item.id for item in ben.pages.desk.open_items("ben")}


def test_both_sides_come_first_equally_often_and_stay(page: MakePage) -> None:
    desk = page().pages.desk
    items = [Item((Message("user", f"{n}?"),), ("a", "b")) for n in range(200)]
    orders = [desk.order("anna", item) for item in items]
    assert 70 < sum(order == (0, 1) for order in orders) < 130
    assert orders == [desk.order("anna", item) for item in items] != [desk.order("ben", item) for item in items]


def test_the_overview(page: MakePage) -> None:
    people = ["anna", "ben"]
    anna, ben = page("anna", people=people, overlap=2), page("ben")
    for _ in range(3):
        for one in (anna, ben):
            one.answer(verdict="4", critique_0="Too long. Much too long, and it does not answer the question.")
    assert anna.client.get("/overview").status_code == 403 and "Overview" not in anna.get()
    assert anna.client.get("/export/trl").status_code == 403
    anna.client.get(f"/join/{anna.pages.asker}")
    text = anna.get("/overview")
    assert "6 ties, 6 critiques" in text and "3 of 4" in text and "100%" in text
    assert re.search(
        r"an answer (is short|answers what was asked) \(6\), (is short|answers what was asked) \(6\)\.", text
    )
    assert anna.client.get("/export/argilla").json()[0]["fields"]["prompt"].startswith("Question")
    assert anna.client.get("/export/csv").status_code == 404


def test_instructions_criteria_and_keys(page: MakePage, tmp_path: Path) -> None:
    (tmp_path / "read_me.md").write_text(
        "# Be kind\n\n<script>alert(1)</script> [x](javascript:alert(1)) ![p](http://x/y.png)"
    )
    anna = page("anna", people=["anna"], instructions=str(tmp_path / "read_me.md"), criteria=["true"], keys=["skip=k"])
    text = anna.client.get(f"/join/{anna.client.cookies['person']}").text
    assert (
        "<h1>Be kind</h1>" in text
        and "<script>alert" not in text
        and 'href="javascript' not in text
        and "<img" not in text
    )
    assert "Be kind" in anna.get() and "Be kind" in anna.get("/instructions")
    assert "<kbd>k</kbd></dt><dd>skip" in anna.get("/?start")
    anna.answer("/?start", **{"verdict": "1", "criterion true": "on"})
    assert anna.store.state().answers()[0][1].criteria == ("true",)


def test_criteria_of_a_file(page: MakePage, tmp_path: Path) -> None:
    file = tmp_path / "criteria.yaml"
    write_criteria(file, [Criterion("says how long", name="how long"), Criterion("is polite", name="polite")])
    assert page(criteria=[str(file), "short"]).pages.criteria == ["how long", "polite", "short"]


def rows(path: Path, *lines: str) -> AskArguments:
    path.write_text("\n".join(lines) + "\n")
    return AskArguments(responses=[str(path)])


def test_items_of_files(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    many = rows(
        path,
        '{"prompt": "Q?", "responses": ["a", "b", "c", "a "], "notes": [["of a"], []]}',
        '{"prompt": "R?", "responses": []}',
    )
    items = list(items_of_responses(many))
    assert [item.responses for item in items] == [("a", "b"), ("a", "c"), ("b", "c"), ()]
    assert items[0].notes == (("of a",), ()) and items[0].source == str(path)
    feedback = rows(path, '{"prompt": "Q?", "chosen": "b", "rejected": "a"}')
    assert [item.responses for item in items_of_responses(feedback)] == [("a", "b")]
    with pytest.raises(DataError, match="list of texts"):
        list(items_of_responses(rows(path, '{"prompt": "Q?", "responses": "a"}')))


def test_each_row_of_a_prompt_gives_its_pairs(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    more = rows(
        path,
        '{"prompt": "Q?", "responses": ["a", "b"], "notes": ["Too long", "ok"]}',
        '{"prompt": "Q?", "responses": ["c", "d"]}',
    )
    items = list(items_of_responses(more))
    assert [item.responses for item in items] == [("a", "b"), ("c", "d")]
    assert items[0].notes == (("Too long",), ("ok",))


def test_a_changed_file_is_refused_and_a_longer_one_is_not(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "file.jsonl"
    old = list(items_of_responses(rows(path, '{"prompt": "Q?", "responses": ["a", "b"]}')))
    store.add_items(old)
    longer = list(
        items_of_responses(
            rows(path, '{"prompt": "Q?", "responses": ["a", "b"]}', '{"prompt": "R?", "responses": ["c"]}')
        )
    )
    check_unchanged(store.state(), longer, [], [str(path)])
    with pytest.raises(DataError, match="1 items of the store are no longer in the file"):
        check_unchanged(store.state(), longer[1:], [], [str(path)])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"host": "0.0.0.0"}, "nobody is invited"),
        ({"people": ["a", "a"]}, "twice"),
        ({"people": ["a\n"]}, "not a name"),
        ({"ask": "disagreement"}, "two or more reward models"),
        ({"ask": "disagreement", "reward_model": ["a", "b"], "model": "m"}, "as they come"),
        ({"keys": ["jump=j"]}, "sets no key"),
        ({"overlap": 0}, "overlap is 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        AskArguments(**settings)
