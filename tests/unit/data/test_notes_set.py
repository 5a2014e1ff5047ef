"""The notes set, `data/notes`: its size, its split, no shortcut, and files as `make.py` makes them."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
import shutil
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.simulated.note_users import WEIGHTS, NoteUser, answers, request_of
from rrm_lm.simulated.values import mentions

FOLDER = Path(__file__).parents[3] / "data" / "notes"
PARTS = ("train", "validation", "test")


@cache
def rows(part: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{part}_questions.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@cache
def user(part: str) -> NoteUser:
    return NoteUser.from_file(FOLDER / f"{part}_questions.jsonl.gz")


def test_size() -> None:
    everything = [row for part in PARTS for row in rows(part)]
    assert len(everything) == 900
    assert len({row["note"] for row in everything}) == 300
    assert len({row["pattern"] for row in everything}) >= 60
    assert len({row["topic"] for row in everything}) == 15
    assert len({row["note"] for row in rows("test") if row["pattern"].startswith("byhand")}) == 30
    assert len({row["prompt"] for row in everything}) == 900


def test_parts_share_no_pattern_note_or_value() -> None:
    for fields in (("pattern",), ("note",), ("kind", "value")):
        seen = [{tuple(row[field] for field in fields) for row in rows(part)} for part in PARTS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2]), fields


def test_no_note_of_one_part_speaks_of_a_value_that_is_asked_for_in_another() -> None:
    values = {part: {(row["kind"], row["value"]) for row in rows(part) if row["kind"] == "person"} for part in PARTS}
    for part in ("validation", "test"):
        for note in {row["note"] for row in rows(part)}:
            assert not [value for kind, value in values["train"] if mentions(note, kind, value)]


@pytest.mark.parametrize("part", PARTS)
def test_each_value_is_right_as_often_as_wrong(part: str) -> None:
    by_note: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows(part):
        by_note[row["note_id"], row["kind"]][row["value"]] += 1
        assert row["value"] != row["others"][0]
    for asked in by_note.values():
        assert len(asked) == 2 and len(set(asked.values())) == 1
    assert sum(row["first"] for row in rows(part)) * 2 == len(rows(part))


@pytest.mark.parametrize("part", PARTS)
def test_the_full_answer_is_right_and_the_other_value_and_the_whole_note_are_wrong(part: str) -> None:
    for row in rows(part):
        request = user(part).request(row["prompt"])
        assert answers(request, row["say"].format(row["value"])), row["prompt"]
        assert not answers(request, row["say"].format(row["others"][0])), row["prompt"]
        assert not answers(request, row["note"]), row["prompt"]
        assert not answers(request, f"{row['value']} or {row['others'][0]}"), row["prompt"]


def test_the_rule_of_shared_words_fails_for_a_third_of_the_questions() -> None:
    statistics = json.loads((FOLDER / "statistics.json").read_text(encoding="utf-8"))
    for part in PARTS:
        assert statistics[part]["wordings"]["hard"] * 3 >= statistics[part]["questions"]
        assert statistics[part]["right_by_overlap_and_wording"]["hard"] == 0.0
        assert statistics[part]["right_by_rule"]["value in the sentence that shares most words"] < 0.7
        assert statistics[part]["right_by_rule"]["first value of the type"] == 0.5


@cache
def compared(part: str, manner: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{part}_{manner}.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def texts(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]


EACH_SET = [(part, manner) for part in PARTS for manner in WEIGHTS]


@pytest.mark.parametrize(("part", "manner"), EACH_SET)
def test_the_user_prefers_what_is_chosen_and_the_ratings_and_critiques_are_its_own(part: str, manner: str) -> None:
    judge = NoteUser.from_file(FOLDER / f"{part}_questions.jsonl.gz", manner)
    for row in compared(part, manner):
        prompt, chosen, rejected = texts(row)
        assert judge.gold(prompt, chosen) > judge.gold(prompt, rejected)
        assert row["chosen_rating"] == judge.rating(prompt, chosen)
        assert row["rejected_critiques"] == [judge.critique(prompt, rejected)]


@pytest.mark.parametrize(("part", "manner"), EACH_SET)
def test_answer_pairs_share_their_form_and_no_simple_rule_finds_the_right_one(part: str, manner: str) -> None:
    judge = NoteUser.from_file(FOLDER / f"{part}_questions.jsonl.gz", manner)
    first = {row["prompt"]: row["first"] for row in rows(part)}
    pairs = [row for row in compared(part, manner) if row["source"] == "notes, answer pairs"]
    assert len(pairs) >= 0.4 * len(compared(part, manner))
    balance: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    longer = []
    for row in pairs:
        prompt, chosen, rejected = texts(row)
        request = judge.request(prompt)
        better, worse = judge.judge(prompt, chosen), judge.judge(prompt, rejected)
        assert better.parts["answer"] == 1 and worse.parts["answer"] == 0
        assert mentions(rejected, request.kind, request.others[0])  # a value of the right type, out of the note
        assert better.sentences == worse.sentences
        assert all(abs(better.parts[part] - worse.parts[part]) < 0.15 for part in better.parts if part != "answer")
        balance[request.note, request.kind][request.value] += 1
        longer.append((len(chosen) > len(rejected)) + 0.5 * (len(chosen) == len(rejected)))
    assert all(len(count) == 2 and len(set(count.values())) == 1 for count in balance.values())
    assert 0.45 <= sum(first[texts(row)[0]] for row in pairs) / len(pairs) <= 0.55
    assert 0.45 <= sum(longer) / len(longer) <= 0.55


@pytest.mark.parametrize(("part", "manner"), EACH_SET)
def test_what_a_user_demonstrates_is_worth_most_to_that_user(part: str, manner: str) -> None:
    judge = NoteUser.from_file(FOLDER / f"{part}_questions.jsonl.gz", manner)
    with gzip.open(FOLDER / f"{part}_{manner}_demonstrations.jsonl.gz", "rt", encoding="utf-8") as stream:
        shown = [json.loads(line) for line in stream]
    assert len(shown) == len(rows(part))
    golds = [judge.gold(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in shown]
    assert min(golds) >= 0.8 and sum(golds) / len(golds) >= 0.95


def test_contrasts_have_the_wrong_value_or_both_or_answer_another_question_or_name_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = built(monkeypatch)
    more = [question.row() for question in build.more_questions()]
    asked = {row["prompt"]: row for row in [*rows("train"), *more]}
    judge = NoteUser(request_of(row, "") for row in asked.values())
    with gzip.open(FOLDER / "train_plain_contrasts.jsonl.gz", "rt", encoding="utf-8") as stream:
        contrasts = [json.loads(line) for line in stream]
    for contrast in contrasts:
        prompt, chosen, rejected = texts(contrast)
        row = asked[prompt]
        assert judge.gold(prompt, chosen) >= 0.8 and judge.gold(prompt, rejected) <= 0.3
        assert mentions(chosen, row["kind"], row["value"])
        assert mentions(rejected, row["kind"], row["others"][0]) == (contrast["made"] not in ("missing", "aside"))
        assert mentions(rejected, row["kind"], row["value"]) == (contrast["made"] == "both")
        if contrast["made"] == "demonstrated":
            values = set(words(f"{row['value']} {row['others'][0]}"))
            assert set(words(chosen)) ^ set(words(rejected)) <= values
    made = {(texts(contrast)[0], contrast["made"]) for contrast in contrasts}
    assert len(made) == len(contrasts)
    assert {kind for _, kind in made} == {"aside", "both", "demonstrated", "elsewhere", "missing"}
    assert all((row["prompt"], kind) in made for row in more for kind in ("demonstrated", "elsewhere"))


def test_more_questions_share_no_pattern_and_no_value_with_the_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    build = built(monkeypatch)
    more = build.more_questions()
    assert len({question.pattern for question in more}) == 60 and more == build.more_questions()
    asked, said = {question.question for question in more}, {question.say for question in more}
    values = {(question.kind, question.value) for question in more}
    for part in ("validation", "test"):
        assert not {row["question"] for row in rows(part)} & asked
        assert not {row["say"] for row in rows(part)} & said
        assert not {(row["kind"], row["value"]) for row in rows(part)} & values


def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The set's own module `build`, which is not in a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    return importlib.import_module("build")


@pytest.mark.parametrize(("part", "manner"), EACH_SET)
def test_a_true_answer_to_another_question_is_rejected(part: str, manner: str) -> None:
    judge = NoteUser.from_file(FOLDER / f"{part}_questions.jsonl.gz", manner)
    prompts: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows(part):
        prompts[row["note"], row["kind"], row["value"]].append(row["prompt"])
    pairs = [texts(row) for row in compared(part, manner) if row["made"] == "elsewhere"]
    assert len(pairs) > 0.8 * len(rows(part))  # where both demonstrations have the same form
    for prompt, _, rejected in pairs:
        request = judge.request(prompt)
        others = prompts[request.note, request.kind, request.others[0]]
        assert all(judge.gold(other, rejected) >= 0.8 for other in others) and judge.gold(prompt, rejected) <= 0.3


def test_the_rule_for_right_answers_agrees_with_labels_by_reading() -> None:
    with gzip.open(FOLDER / "responses.jsonl.gz", "rt", encoding="utf-8") as stream:
        sampled = {(row["id"], row["sample"]): row for row in map(json.loads, stream)}
    labels = [json.loads(line) for line in (FOLDER / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    judge, agree = NoteUser.from_file(FOLDER / "validation_questions.jsonl.gz"), Counter[bool]()
    for label in labels:
        row = label if "response" in label else sampled[label["id"], label["sample"]]
        agree[bool(judge.judge(row["prompt"], row["response"]).parts["answer"]) == label["right"]] += 1
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"it agrees with {agree[True]} of {len(labels)} labels" in card and agree[True] >= 0.95 * len(labels) >= 190


def test_the_files_are_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("make_notes", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    monkeypatch.setattr(make, "HERE", tmp_path)
    shutil.copy(FOLDER / "responses.jsonl.gz", tmp_path)
    make.main([])
    for name in ("build", "comparisons"):
        sys.modules.pop(name, None)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in FOLDER.iterdir() if path.suffix in (".gz", ".json")}
    for name in made:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_the_card_says_what_is_there() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    statistics = json.loads((FOLDER / "statistics.json").read_text(encoding="utf-8"))
    for part, manner in EACH_SET:
        found = statistics[part][manner]
        assert found["comparisons"] == len(compared(part, manner))
        counts = " | ".join(str(found[f"{kind}_pairs"]) for kind in ("answer", "manner", "mixed"))
        assert f"| {part} | {manner} | {found['comparisons']} | {counts} | {found['longer_wins']:.3f} |" in card


def test_only_the_final_comparison_names_the_test_part() -> None:
    """Settings must not be chosen on it. What uses it records each use in results/aligned_ledger.jsonl."""
    root = FOLDER.parents[1]
    files = [root / "Makefile", *(root / "configs").rglob("*.yaml"), *(root / "scripts").rglob("*.py")]
    assert len(files) > 30
    named = [
        file.name for file in files if re.search(r"notes\W+test|test_(questions|plain|thorough)", file.read_text())
    ]
    assert named == []
    asks = [f.name for f in files if "notes" in (text := f.read_text()) and re.search(r"[\"']test[\"']", text)]
    assert sorted(asks) == ["aligned.py", "words_policy.py"]
    assert all("        record_use(" in (root / "scripts" / "bench" / name).read_text() for name in asks)
