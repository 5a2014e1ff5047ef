"""Prompts from files of feedback, and from files that have nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.feedback.records import Message


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(name: str, **more: Any) -> list[str]:
    return [prompt[-1].content for prompt in load_prompts(name, **more)]


def test_prompts_alone(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "who?"},
    ]
    name = lines(tmp_path / "p.jsonl", [{"prompt": "why?", "topic": "x"}, {"prompt": talk}, {"prompt": "why?"}])
    assert load_prompts(name) == [
        (Message("user", "why?"),),
        (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "who?")),
    ]


def test_other_column_names(tmp_path: Path) -> None:
    name = lines(tmp_path / "r.jsonl", [{"request": "one?"}, {"request": "two?"}])
    assert texts(name, columns={"request": "prompt"}) == ["one?", "two?"]


def test_prompts_of_feedback_each_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i // 2}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(6)]
    assert texts(lines(tmp_path / "pairs.jsonl", rows)) == ["q0?", "q1?", "q2?"]
    packed = tmp_path / "pairs2.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    assert texts(str(packed)) == ["q0?", "q1?", "q2?"]


def test_a_folder_by_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines(tmp_path / f"{split}.jsonl", [{"prompt": f"{split}?", "completion": "yes"}])
    assert texts(str(tmp_path)) == ["test?"]
    assert texts(str(tmp_path), split="train") == ["train?"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": None}, "is null"),
        ({"prompt": [{"role": "assistant", "content": "hello"}]}, "no user turn"),
        ({"prompt": 3}, "not text"),
        ({"other": "x"}, "is missing"),
    ],
)
def test_a_faulty_row_is_named_or_passed_over(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    name = lines(tmp_path / "p.jsonl", [{"prompt": "fine?"}, row])
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(name)
    assert "row 2" in caught.value.where
    assert texts(name, skip_bad_rows=True) == ["fine?"]


def test_nothing_to_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt in it"):
        load_prompts(lines(tmp_path / "a.jsonl", [{"prompt": " "}]), skip_bad_rows=True)
    with pytest.raises(DataError, match="match no known feedback format"):
        load_prompts(lines(tmp_path / "b.jsonl", [{"riddle": "why?"}]))
    with pytest.raises(DataError, match="no such file"):
        load_prompts(str(tmp_path / "c.jsonl"))
