"""The notes set, `data/notes`: its size, its split, no shortcut, and files as `make.py` makes them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.simulated.note_users import NoteUser, answers
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


def test_the_files_are_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("make_notes", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    sys.modules.pop("build", None)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"statistics.json", *(f"{part}_questions.jsonl.gz" for part in PARTS)}
    for name in made:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
