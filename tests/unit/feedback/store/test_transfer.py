"""What leaves a store comes back the same: in this project's files, in TRL's shape, and through Argilla's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.cli.main import main
from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.feedback.records import Comparison, Message, Origin
from rrm_lm.feedback.store import transfer
from rrm_lm.feedback.store.events import ANSWER, RETRACT, UNDO, About, Answer, Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.feedback.store.records import numbered_records, store_digest

ASK = (Message("system", "Be brief."), Message("user", "Capital of Norway?"))
PAIR = Item(ASK, ("Oslo, on a fjord.", "Rome."), source="file.jsonl")
OTHER = Item((Message("user", "How long does rice keep?"),), ("Four days.", "Rice is a grain."))
WRITE, ONE = Item(ASK), Item(ASK, ("Rome.",))
HOSTILE = Item((Message("user", '<script>"'),), ("\n\nHuman: hi\n\nAssistant: [1]", '[{"role": "x"}]'))
GIVEN = [
    (
        "anna",
        PAIR,
        Answer(verdict="first", strength=2.0, about=(About(rating=1.0), About(critiques=("Wrong.", "No.")))),
    ),
    ("ben", PAIR, Answer(verdict="second", strength=1.0)),
    (
        "anna",
        OTHER,
        Answer(verdict="tie", about=(About(rating=0.75, critiques=("Fine.",)), About(corrected="Cooked: 4"))),
    ),
    ("ben", OTHER, Answer(verdict="both_bad", about=(About(goal="goal"), About(goal="unacceptable", quote="a grain")))),
    ("anna", WRITE, Answer(demonstration="Oslo.")),
    ("ben", ONE, Answer(about=(About(critiques=("Wrong country.",), quote="Rome", corrected="Oslo."),))),
    ("anna", HOSTILE, Answer(verdict="second", about=(About(critiques=("\u202e=cmd()",)), About()))),
    ("ben", HOSTILE, Answer(verdict="skip")),
]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "feedback.db", create=True) as opened:
        opened.add_items([PAIR, OTHER, WRITE, ONE, HOSTILE])
        for person, item, answer in GIVEN:
            answer.check(item)
            opened.append(ANSWER, person=person, item=item.id, body=asdict(answer))
        yield opened


def said(feedback: Feedback) -> list[str]:
    """Records without where they came from, in any order."""
    records = [replace(record, origin=Origin("", 0), subset="") for record in feedback.records()]
    return sorted(map(repr, records))


def test_the_records_of_answers(store: Store) -> None:
    found = load_feedback(str(store.path))
    assert found.sizes() == {
        "comparisons": 3, "critiques": 2, "ratings": 1, "demonstrations": 1, "corrections": 2, "goal_examples": 1,
    }  # fmt: skip
    first = found.comparisons[0]
    assert (first.chosen, first.rejected, first.margin) == ("Oslo, on a fjord.", "Rome.", 2.0)
    assert first.rejected_critiques == ("Wrong.", "No.") and first.chosen_rating == 1.0 and first.source == "anna"
    assert found.comparisons[1].source == "ben" and found.comparisons[1].chosen == "Rome."  # disagreement is kept
    assert {c.critique for c in found.critiques} == {"Fine.", 'On "Rome": Wrong country.'}
    assert found.counts.files[0].rows == len(GIVEN) and found.counts.files[0].rows_dropped == 1
    assert load_prompts(str(store.path)) == [ASK, OTHER.prompt, HOSTILE.prompt]


def test_this_projects_files(store: Store, tmp_path: Path) -> None:
    counts = transfer.export(store.state(), tmp_path / "out", "rrm_lm")
    assert counts == {"comparisons": 3, "responses": 3, "demonstrations": 1, "goal_examples": 1, "unacceptable": 1}
    found = [
        load_feedback(str(file)) for file in sorted((tmp_path / "out").glob("*.jsonl")) if file.stem != "unacceptable"
    ]
    everything = Feedback.of([record for part in found for record in part.records()])
    assert said(everything) == said(load_feedback(str(store.path)))
    transfer.export(store.state(), tmp_path / "out", "rrm_lm")  # an earlier export is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match="not empty"):
        transfer.export(store.state(), tmp_path / "mine", "rrm_lm")


def test_an_exported_folder_is_read_as_a_whole(store: Store, tmp_path: Path) -> None:
    transfer.export(store.state(), tmp_path / "out", "rrm_lm")
    assert said(load_feedback(str(tmp_path / "out"))) == said(load_feedback(str(store.path)))


def test_records_come_back_from_another_store(store: Store, tmp_path: Path) -> None:
    records = list(load_feedback(str(store.path)).records())
    with Store(tmp_path / "copy.db", create=True) as copy:
        assert transfer.import_records(copy, records)["answers"] == 8
        assert said(load_feedback(str(copy.path))) == said(load_feedback(str(store.path)))
        assert transfer.import_records(copy, records) == {"answers": 0, "duplicates": 8, "conflicts": 0}
        flipped = Comparison(
            prompt=ASK, chosen="Rome.", rejected="Oslo, on a fjord.", source="anna", origin=Origin("", 1)
        )
        assert transfer.import_records(copy, [flipped])["conflicts"] == 1


def test_trls_preferences(store: Store, tmp_path: Path) -> None:
    assert transfer.export(store.state(), tmp_path / "pairs.jsonl", "trl") == {"comparisons": 3}
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    from trl.data_utils import is_conversational

    assert is_conversational(rows[0])
    pairs = [(c.prompt, c.chosen, c.rejected) for c in load_feedback(str(tmp_path / "pairs.jsonl")).comparisons]
    assert pairs == [(c.prompt, c.chosen, c.rejected) for c in load_feedback(str(store.path)).comparisons]


def test_argillas_export(store: Store, tmp_path: Path) -> None:
    transfer.export(store.state(), tmp_path / "argilla.json", "argilla")
    records = json.loads((tmp_path / "argilla.json").read_text())
    assert {"id", "fields", "metadata", "suggestions", "responses", "vectors"} == set(records[0])
    assert records[0]["responses"]["verdict"] == [
        {"value": "first", "user_id": "anna"}, {"value": "second", "user_id": "ben"},
    ]  # fmt: skip
    with Store(tmp_path / "copy.db", create=True) as copy:
        items, given = transfer.read_argilla(records, "argilla.json")
        assert transfer.add_answers(copy, items, given)["answers"] == len(GIVEN)
        again = transfer.argilla_records(copy.state())
        key = lambda record: record["id"]  # noqa: E731
        assert json.dumps(sorted(again, key=key), sort_keys=True) == json.dumps(
            sorted(records, key=key), sort_keys=True
        )


def test_argillas_own_dataset_of_preferences() -> None:
    record = {
        "fields": {"instruction": "Capital of Norway?", "response1": "Rome.", "response2": "Oslo."},
        "responses": {"preference": [{"value": "response2", "user_id": "u"}]},
    }
    items, given = transfer.read_argilla([record], "file")
    [(key, answer)] = given.items()
    item = items[key[1]]
    assert item.responses == ("Oslo.", "Rome.") and answer.verdict == "first"
    record["responses"] = {"politeness": [{"value": "high", "user_id": "u"}]}
    with pytest.raises(DataError, match="politeness"):
        transfer.read_argilla([record], "file")
    with pytest.raises(DataError, match="row 1"):
        transfer.read_argilla([{"text": "x"}], "file")


@pytest.mark.parametrize(
    ("value", "critiques"),
    [("Too long.", ("Too long.",)), ('["Too long.", "Cold."]', ("Too long.", "Cold.")), ("123", ("123",)), (" ", ())],
)
def test_argilla_gives_critiques_that_a_person_typed(value: str, critiques: tuple[str, ...]) -> None:
    record = {
        "fields": {"prompt": "q", "response_0": "a", "response_1": "b"},
        "responses": {
            "verdict": [{"value": "first", "user_id": "u"}],
            "critiques_0": [{"value": value, "user_id": "u"}],
        },
        "metadata": None,
    }
    _, given = transfer.read_argilla([record], "file")
    [answer] = given.values()
    assert (answer.about[0].critiques if answer.about else ()) == critiques


def test_merging_keeps_people_times_and_undone_answers(store: Store, tmp_path: Path) -> None:
    last = store.state().last("ben")
    assert last is not None
    store.append(UNDO, person="ben", body={"answer": last.id})
    with Store(tmp_path / "other.db", create=True) as other, Store(tmp_path / "all.db", create=True) as merged:
        other.add_items([PAIR])
        other.append(ANSWER, person="carl", item=PAIR.id, body={"verdict": "tie"})
        assert transfer.merge(merged, [store, other]) == {"answers": 9, "duplicates": 0, "conflicts": 0}
        assert transfer.merge(merged, [store, other]) == {"answers": 0, "duplicates": 9, "conflicts": 0}
        found = [(e.person, e.item, e.time) for e, _ in merged.state().answers()]
        expected = [(e.person, e.item, e.time) for s in (store, other) for e, _ in s.state().answers()]
        assert sorted(found) == sorted(expected)
        changed = Answer(verdict="second")
        other.append(ANSWER, person="anna", item=PAIR.id, body=asdict(changed))
        assert transfer.merge(merged, [other]) == {"answers": 0, "duplicates": 1, "conflicts": 1}


def test_copies_of_a_store_that_were_filled_apart_are_merged_whole(store: Store, tmp_path: Path) -> None:
    names, paths = ("carl", "dora"), [tmp_path / f"{name}.db" for name in ("carl", "dora")]
    for name, path in zip(names, paths, strict=True):
        with Store(store.path) as original:
            original._connection.execute("VACUUM INTO ?", (str(path),))
        with Store(path) as copy:
            copy.append(ANSWER, person=name, item=PAIR.id, body={"verdict": "first" if name == "carl" else "second"})
    shared = len(store.state().answers())
    with Store(paths[0]) as carl, Store(paths[1]) as dora, Store(tmp_path / "all.db", create=True) as merged:
        assert transfer.merge(merged, [carl, dora])["answers"] == shared + 2
        assert {e.person for e, _ in merged.state().answers()} == {"anna", "ben", "carl", "dora"}
        assert transfer.merge(merged, [carl, dora])["answers"] == 0
        assert transfer.merge(store, [carl, dora])["answers"] == 2
        assert {(e.person, a.verdict) for e, a in store.state().answers() if e.person in names} == {
            ("carl", "first"), ("dora", "second"),
        }  # fmt: skip


def test_an_older_copy_changes_nothing_in_the_store_it_was_made_of(store: Store, tmp_path: Path) -> None:
    store._connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    for verdict in ("second", "first", "second"):  # within a second, so two of these events are equal
        store.append(ANSWER, person="anna", item=PAIR.id, body={"verdict": verdict})
    before = [(event.id, answer) for event, answer in store.state().answers()]
    with Store(tmp_path / "backup.db") as backup:
        found = transfer.merge(store, [backup])
        assert (found["answers"], found["conflicts"]) == (0, 0)
        assert [(event.id, answer) for event, answer in store.state().answers()] == before
        transfer.merge(backup, [store])
        answer = backup.state().answer("anna", PAIR.id)
        assert answer is not None and answer.verdict == "second"


def test_retracted_feedback_is_not_trained_on(store: Store) -> None:
    before = store_digest(store.path)
    store.append(RETRACT, body={"person": "anna"})
    assert {record.source for record in load_feedback(str(store.path)).records()} == {"ben"}
    store.append(RETRACT, item=PAIR.id, body={"person": ""})
    assert not load_feedback(str(store.path)).comparisons and store_digest(store.path) != before
    store.append(RETRACT, body={"person": "ben"})
    with pytest.raises(DataError, match="none of the 0 answers"):
        load_feedback(str(store.path))


def test_a_bad_answer_stops_nothing(store: Store) -> None:
    """Answers about items that are not in the store are left out."""
    store.append(ANSWER, person="anna", item="unknown", body={"verdict": "first"})
    assert len(list(numbered_records(store.state(), "f"))) == len(GIVEN)


def test_an_export_can_carry_the_reliability_of_people(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["feedback", "export", str(tmp_path / "feedback.db"), "--output", str(tmp_path / "out")]
    assert main([*command, "--reliability", "true"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "comparisons.jsonl").read_text().splitlines()]
    margins = {row["source"]: row["margin"] for row in rows}
    assert set(margins) == {"anna", "ben"} and all(0 <= one < 4 for one in margins.values())
    capsys.readouterr()
    assert main([*command, "--reliability", "true", "--format", "trl"]) == 2
    assert "`reliability` is for export in the format rrm_lm" in capsys.readouterr().err
