"""`rrm-lm criteria` on a small file."""

import json
from pathlib import Path

import pytest

from rrm_lm.cli.main import main
from rrm_lm.feedback.criteria.records import read_criteria


@pytest.fixture
def feedback(tmp_path: Path) -> str:
    rows = [
        {
            "prompt": "How long does rice keep?",
            "chosen": f"It keeps {n} days.",
            "rejected": "Well, it depends on many things. " * n,
            "chosen_critiques": ["Nice and short."],
            "rejected_critiques": [f"Far too long, [bold]{n} lines[/bold]. My cat is called Tom."],
        }
        for n in range(2, 14)
    ]
    path = tmp_path / "feedback.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_prints_and_writes(feedback: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "criteria.yaml"
    assert main(["criteria", feedback, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for text in ("is short", "less words", '"Nice and short."', "feedback.jsonl, row", "12 x  My cat is called Tom."):
        assert text in printed
    assert "[bold]" in printed  # markup in a critique is text
    assert output.read_text().startswith("# Criteria that rrm-lm criteria found")
    (criterion,) = read_criteria(output)
    assert (criterion.name, criterion.direction, criterion.named, criterion.faults) == ("length", "less", 24, 12)


def test_json(feedback: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["criteria", "--dataset", feedback, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["criteria"][0]["agreement"] == 1.0
    assert found["uncovered"] == {"My cat is called Tom.": 12}


def test_without_critiques(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}))
    assert main(["criteria", str(path), "--output", str(tmp_path / "out.yaml")]) == 1
    assert "There are no critiques" in capsys.readouterr().out
    assert not (tmp_path / "out.yaml").exists()
