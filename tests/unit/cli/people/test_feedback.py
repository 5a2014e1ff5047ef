"""`rrm-lm feedback`: each action on a small store, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.cli.main import main
from rrm_lm.feedback.reading.datasets import load_feedback

ROWS = [
    {"prompt": "Capital of Norway?", "chosen": "Oslo.", "rejected": "Rome.", "rejected_critiques": ["Wrong country."]},
    {"prompt": "How long does rice keep?", "chosen": "Four days.", "rejected": "Rice is a grain."},
]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*words: str) -> dict[str, Any]:
        assert main(["feedback", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_from_file_to_file(call: Any) -> None:
    assert call("import", "a.db", "pairs.jsonl", "--person", "anna") == {"answers": 2, "duplicates": 0, "conflicts": 0}
    assert call("import", "a.db", "pairs.jsonl", "--person", "anna")["duplicates"] == 2
    assert call("export", "a.db", "--output", "out") == {"written": "out", "comparisons": 2}
    assert [(c.chosen, c.source) for c in load_feedback("out").comparisons] == [
        ("Oslo.", "anna"),
        ("Four days.", "anna"),
    ]
    call("export", "a.db", "--output", "argilla.json", "--format", "argilla")
    assert call("import", "b.db", "argilla.json")["answers"] == 2
    assert call("merge", "c.db", "a.db", "b.db") == {"answers": 4, "duplicates": 0, "conflicts": 0}
    stats = call("stats", "c.db")
    assert (stats["items"], stats["people"], stats["rows"]) == (2, {"anna": 2}, {"comparisons": 2})
    assert call("retract", "a.db", "--person", "anna") == {"retracted": 2}


def test_comparisons_made_from_ratings_are_not_imported_twice(call: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": text, "rating": rating} for text, rating in (("Hello!", 1), ("What?", 0))]
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("import", "a.db", "ratings.jsonl")["answers"] == 2
    assert load_feedback("a.db").sizes() == {"ratings": 2, "comparisons": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drop", "a.db"], "There is no action 'drop a.db'"),
        (["import", "a.db"], "0 files after the store"),
        (["stats", "a.db", "b.db"], "1 files after the store"),
        (["export", "a.db"], "--output"),
        (["retract", "a.db"], "--person or --item"),
        (["stats", "missing.db"], "no such store"),
        (["stats", "pairs.jsonl"], "not a SQLite file"),
    ],
)
def test_refusals(words: list[str], message: str, call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["feedback", *words]) == 2
    assert message in capsys.readouterr().err
