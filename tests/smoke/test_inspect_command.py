"""`rrm-lm inspect`: a page of 100 columns, JSON, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import pair_rows, run, write_rows


def test_the_page(tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    rows = [
        row | {"id": n, "topic": "ab"[n % 2], "question": row.pop("prompt"), "note": f"some words for you {n}"}
        for n, row in enumerate(pair_rows(20))
    ]
    file = write_rows(tmp_path / "mine.jsonl", [*rows, rows[0]])
    result = run(capsys, "inspect", file, "--model", tiny)
    assert result.code == 0 and result.err == ""
    lines = [line.strip() for line in result.out.splitlines()]
    assert lines[0] == f"{file}: 21 rows, read as critiqued pairs"
    text = " ".join(" ".join(lines).split())
    for part in (
        "question (as prompt)",
        "not read 'id'",
        "not read 'note' (text, in 100% of rows",
        "noticed the row repeats an earlier one: 1 (row 21)",
        "records train held out",
        "mine / a",
        "tokens of tiny-llama median 95% longest",
        "Rows as tiny-llama sees them; the reward is read at ▲, words in ⟦ ⟧ are learned",
        "prompt <|im_start|>user↵",
        "template renders all words of 21 records",
        "conversations is longer than 512 tokens (max_length)",
        "repeats 1 repeat an earlier row",
        f"rrm-lm reward --dataset_name {file} --model_name_or_path {tiny}",
    ):
        assert part in text, part
    before = [line for line in result.out.partition("Ready.")[0].splitlines() if str(file) not in line]
    assert max(map(len, before)) <= 100


def test_json_and_the_exit_code(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "mine.jsonl", [*pair_rows(20), {"prompt": "a", "chosen": "", "rejected": "b"}])
    result = run(capsys, "inspect", file, "--model", tiny, "--json")
    found = json.loads(result.out)
    assert result.code == 1 and "column 'chosen' is empty" in found["problem"]
    assert found["read"]["files"][0]["columns"]["chosen_rating"] == "chosen_rating"
    assert len(found["rows"]) == 3
    skipping = run(capsys, "inspect", file, "--skip_bad_rows", "true", "--json", "--rows", 0)
    assert skipping.code == 0 and json.loads(skipping.out)["problem"] == ""


def test_what_cannot_be_read_is_one_sentence_after_its_columns(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "mine.jsonl", [{"apples": "are " * 200, "pears": 3}])
    result = run(capsys, "inspect", file)
    assert result.code == 1 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == f"{file}: 1 rows" and "characters ...]" in result.out and "pears" in result.out
    assert lines[-1].startswith("cannot be trained on: these columns match no known feedback format: apples, pears")
    trained = run(capsys, "reward", "--dataset_name", file, "--output_dir", tmp_path / "out")
    assert trained.error["what to do"].endswith(f"; rrm-lm inspect {file} shows its columns")
    assert "rrm-lm inspect" not in result.out
    assert json.loads(run(capsys, "inspect", file, "--json").out)["problem"] == lines[-1].partition(": ")[2]
    assert run(capsys, "inspect", tmp_path / "no.jsonl").out.startswith("cannot be trained on: there is no such file")


def test_a_file_is_needed(capsys: Any) -> None:
    result = run(capsys, "inspect")
    assert result.code == 2 and result.error["what to do"] == "name a file: rrm-lm inspect my_feedback.jsonl"
