"""Names to feedback: files, folders, Hub sets; merging; every row accounted for."""

import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback, merge_feedback
from rrm_lm.feedback.records import Comparison, Message, Origin, Rating


def pair(number=0):
    return {"prompt": f"Question {number}?", "chosen": f"Yes {number}.", "rejected": f"No {number}."}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_same_rows_from_every_kind_of_file_give_the_same_records(tmp_path):
    rows = [pair(i) | {"margin": i / 2} for i in range(4)]
    write(tmp_path / "one" / "set.jsonl", *rows)
    (tmp_path / "set.json").write_text(json.dumps(rows))
    lines = [",".join(str(value) for value in row.values()) for row in rows]
    (tmp_path / "set.csv").write_text(",".join(rows[0]) + "\n" + "\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")

    def told(path):
        loaded = load_feedback(str(path)).comparisons
        return [(c.prompt, c.chosen, c.rejected, c.margin, c.source, c.origin.row) for c in loaded]

    expected = told(tmp_path / "one" / "set.jsonl")
    assert len(expected) == 4
    for name in ("set.json", "set.csv", "set.parquet"):
        assert told(tmp_path / name) == expected


def test_origins_name_the_file_as_it_was_given(tmp_path, monkeypatch):
    write(tmp_path / "in" / "set.jsonl", pair())
    monkeypatch.chdir(tmp_path)
    assert load_feedback("in/set.jsonl").comparisons[0].origin == Origin("in/set.jsonl", 1)


def test_a_file_named_for_its_split_takes_the_name_of_its_folder(tmp_path):
    path = write(tmp_path / "questions" / "train.jsonl", pair())
    assert load_feedback(str(path)).comparisons[0].source == "questions"


def test_a_folder_with_named_splits_gives_the_one_asked_for(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", pair(0))
    write(tmp_path / "train-00001-of-00002.jsonl", pair(1))
    write(tmp_path / "dev.jsonl", pair(2))
    (tmp_path / "README.md").write_text("not data")
    assert len(load_feedback(str(tmp_path)).comparisons) == 2
    [held_out] = load_feedback(str(tmp_path), split="validation").comparisons
    assert held_out.chosen == "Yes 2."
    with pytest.raises(DataError, match=r"split 'test'.*train, validation"):
        load_feedback(str(tmp_path), split="test")


def test_a_folder_without_named_splits_gives_all_files_each_in_its_own_shape(tmp_path):
    write(tmp_path / "pairs.jsonl", pair())
    write(tmp_path / "words.jsonl", {"prompt": "Hi", "response": "Yo", "critique": "Rude."})
    for beside in ("run.json", "counts.json"):  # of this program's own commands
        (tmp_path / beside).write_text('{"comparisons": 1}')
    feedback = load_feedback(str(tmp_path))
    assert feedback.sizes() == {"comparisons": 1, "critiques": 1}
    assert [file.format for file in feedback.counts.files] == ["preference pairs", "critiques, ratings and corrections"]


def test_a_folder_without_data_and_names_of_nothing(tmp_path):
    with pytest.raises(DataError, match="no data file"):
        load_feedback(str(tmp_path))
    for name in ("gone.jsonl", "./gone", "a/b/c", "two words"):
        with pytest.raises(DataError, match="no such file or folder"):
            load_feedback(name)


def test_hub_sets_are_asked_for_by_name_split_revision_and_config(monkeypatch):
    asked = {}

    def fake(name, config, **options):
        asked.update(name=name, config=config, **options)
        return datasets.Dataset.from_list([pair(0), pair(1) | {"chosen": ""}, pair(2)])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    feedback = load_feedback("Org/Some-Set", split="test", revision="abc", config="main")
    assert asked == {"name": "Org/Some-Set", "config": "main", "split": "test", "revision": "abc"}
    assert [record.origin for record in feedback.comparisons] == [
        Origin("Org/Some-Set[test]", 1),
        Origin("Org/Some-Set[test]", 3),
    ]
    assert {record.source for record in feedback.comparisons} == {"some-set"}
    [tally] = feedback.counts.files[0].dropped.values()  # a Hub set cannot be mended, so the row is passed over
    assert tally.count == 1
    with pytest.raises(DataError, match=r"Org/Some-Set\[test\], row 2"):
        load_feedback("Org/Some-Set", split="test", skip_bad_rows=False)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found SLF5K.py"), "refs/convert/parquet"),
        (ValueError("Unknown split \"train\". Should be one of ['test']."), "--dataset_train_split"),
        (ValueError("Config name is missing."), "--dataset_config"),
        (ConnectionError("Couldn't reach the Hub"), "HF_HUB_OFFLINE"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, error, remedy):
    def fake(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.raises(DataError, match=r"org/set\[train\]") as caught:
        load_feedback("org/set")
    assert remedy in str(caught.value) and str(error).split(".")[0] in str(caught.value)


def test_a_set_that_datasets_saved_to_a_folder(tmp_path):
    splits = {"train": [pair(0)], "test": [pair(1), pair(2)]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert len(load_feedback(str(tmp_path / "saved"), split="test").comparisons) == 2
    with pytest.raises(DataError, match="--split"):
        load_feedback(str(tmp_path / "saved"), split="dev")


def test_nested_columns_of_a_hub_set_arrive_as_lists(monkeypatch):
    people = [{"score": 2, "reasoning": "r", "feedback1": "Bad.", "feedback2": "Good."}]
    row = {
        "context": [{"role": "user", "content": "Hi"}],
        "response1": "a",
        "response2": "b",
        "overall_preference": 2,
        "individual_preference": people,
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
    [record] = load_feedback("nvidia/HelpSteer3").comparisons
    assert (record.chosen, record.chosen_critiques, record.rejected_critiques) == ("b", ("Good.",), ("Bad.",))


def test_merging_keeps_records_and_counts(tmp_path):
    first = load_feedback(str(write(tmp_path / "a.jsonl", pair(0), pair(1) | {"rejected": "Yes 1."})))
    second = load_feedback(
        str(write(tmp_path / "b.jsonl", *({"prompt": "p", "response": r, "rating": i} for i, r in enumerate("xy"))))
    )
    merged = merge_feedback(first, second)
    assert merged.comparisons == first.comparisons + second.comparisons
    assert merged.ratings == second.ratings
    assert (merged.counts.rows, merged.counts.rows_dropped, merged.counts.derived_comparisons) == (4, 1, 1)
    assert len(merged) == len(first) + len(second)
    assert merged.counts.summary().count("\n") == 2
    told = merged.counts.to_dict()
    assert (told["rows"], told["rows_dropped"], told["derived_comparisons"], told["derived_ties"]) == (4, 1, 1, 0)
    assert [file["made"] for file in told["files"]] == [{"comparisons": 1}, {"ratings": 2}]
    json.dumps(told)


def test_feedback_is_sorted_by_kind_and_lists_all_its_records():
    ask, here = (Message("user", "Hi"),), Origin("f", 1)
    rating = Rating(prompt=ask, response="a", rating=1.0, origin=here)
    comparison = Comparison(prompt=ask, chosen="a", rejected="b", origin=here)
    feedback = Feedback.of([rating, comparison])
    assert list(feedback.records()) == [comparison, rating]
    assert (len(feedback), feedback.sizes()) == (2, {"comparisons": 1, "ratings": 1})


# Any text that is one record's: not blank, and without the halves of surrogate pairs that no file can hold.
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
pairs = st.builds(lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}, text, text, text)


@given(rows=st.lists(st.tuples(pairs, st.sampled_from(["good", "tie", "empty", "null", "missing"])), max_size=12))
def test_no_row_is_lost_and_texts_come_back_as_they_were_written(tmp_path_factory, rows):
    written = []
    for row, fault in rows:
        changes = {"tie": {"rejected": row["chosen"]}, "empty": {"chosen": " "}, "null": {"prompt": None}}
        row = row | changes.get(fault, {})
        written.append({"prompt": row["prompt"]} if fault == "missing" else row)
    sure = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}
    path = write(tmp_path_factory.mktemp("rows") / "any.jsonl", sure, *written)
    feedback = load_feedback(str(path), skip_bad_rows=True)
    counts = feedback.counts.files[0]
    assert counts.rows == len(written) + 1 == counts.rows_used + counts.rows_dropped
    assert counts.rows_used == len(feedback.comparisons)
    assert counts.rows_dropped == sum(tally.count for tally in counts.dropped.values())
    kept = Counter((c.chosen, c.rejected) for c in feedback.comparisons)
    usable = [row for row, fault in rows if fault == "good" and row["chosen"].strip() != row["rejected"].strip()]
    assert kept == Counter([(row["chosen"], row["rejected"]) for row in [sure, *usable]])


roles = st.sampled_from(["user", "assistant"])
turns = st.lists(st.tuples(roles, text), max_size=5)


@given(talks=st.lists(st.tuples(turns, text, text, text), min_size=1, max_size=6))
def test_conversations_come_back_turn_by_turn(tmp_path_factory, talks):
    rows, expected = [], []
    for earlier, last, chosen, rejected in talks:
        prompt = [{"role": role, "content": content} for role, content in [*earlier, ("user", last)]]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        if chosen.strip() != rejected.strip():
            messages = tuple(Message(role, content) for role, content in [*earlier, ("user", last)])
            expected.append((messages, chosen, rejected))
    sure = {"prompt": [{"role": "user", "content": "Hello?"}], "chosen": "Yes.", "rejected": "No."}
    path = write(tmp_path_factory.mktemp("talks") / "any.jsonl", *rows, sure)
    got = [(c.prompt, c.chosen, c.rejected) for c in load_feedback(str(path)).comparisons]
    plain = [(m, c, r) for m, c, r in expected]
    assert got[:-1] == plain


@given(
    ratings=st.lists(
        st.tuples(st.sampled_from("pq"), st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0])), max_size=12
    )
)
def test_derived_comparisons_agree_with_the_mean_ratings(tmp_path_factory, ratings):
    rows = [{"prompt": p, "response": r, "rating": value} for p, r, value in [("sure", "x", 1.0), *ratings]]
    feedback = load_feedback(str(write(tmp_path_factory.mktemp("rated") / "any.jsonl", *rows)))
    assert len(feedback.ratings) == len(rows)

    def mean(prompt, response):
        values = [value for p, r, value in ratings if (p, r) == (prompt, response)]
        return sum(values) / len(values) if values else None

    expected = {}
    for prompt in "pq":
        rated = {response: mean(prompt, response) for response in "abc"}
        for better in rated:
            for worse in rated:
                high, low = rated[better], rated[worse]
                if high is not None and low is not None and high > low + 1e-9:
                    expected[prompt, better, worse] = high - low
    got = {(c.prompt[0].content, c.chosen, c.rejected): c.margin for c in feedback.comparisons}
    assert got == pytest.approx(expected)
    assert feedback.counts.derived_comparisons == len(expected)
