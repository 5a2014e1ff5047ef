"""Makes the questions of the notes set: `python data/notes/make.py`.

Writes a file of questions for each part (`train_questions.jsonl.gz` and so on) and `statistics.json` beside this file.
It takes a second and gives the same bytes every time; a test checks that.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from build import Question, by_overlap, questions

from rrm_lm import storage

HERE = Path(__file__).resolve().parent
PARTS = ("train", "validation", "test")
RULES: dict[str, Callable[[Question], str]] = {
    "first value of the type": lambda question: question.value if question.first else question.other,
    "last value of the type": lambda question: question.other if question.first else question.value,
    "value in the sentence that shares most words": by_overlap,
}


def main() -> None:
    """Write the three files and what the card reports."""
    by_part = {part: [question for question in questions() if question.part == part] for part in PARTS}
    for part, asked in by_part.items():
        write_gzipped(HERE / f"{part}_questions.jsonl.gz", [question.row() for question in asked])
    summary = {part: statistics(asked) for part, asked in by_part.items()}
    storage.write_json(HERE / "statistics.json", summary)
    print(storage.json_text(summary))


def statistics(asked: Sequence[Question]) -> dict:
    """What the card reports about one part."""

    def right(rule: Callable[[Question], str], some: Sequence[Question]) -> float:
        return round(sum(rule(question) == question.value for question in some) / len(some), 3)

    worded = {wording: [q for q in asked if q.wording == wording] for wording in ("plain", "task", "hard")}
    return {
        "questions": len(asked),
        "notes": len({question.note for question in asked}),
        "patterns": len({question.pattern for question in asked}),
        "topics": len({question.topic for question in asked}),
        "wordings": {wording: len(some) for wording, some in worded.items()},
        "kinds": dict(sorted(Counter(question.kind for question in asked).items())),
        "note_words_median": sorted(len(question.note.split()) for question in asked)[len(asked) // 2],
        "right_by_rule": {name: right(rule, asked) for name, rule in RULES.items()},
        "right_by_overlap_and_wording": {wording: right(by_overlap, some) for wording, some in worded.items()},
    }


def write_gzipped(path: Path, rows: Sequence[dict]) -> None:
    """Write JSON lines, gzipped without a time stamp, so that equal data gives equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with storage.staged_file(path) as staged:
        staged.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    main()
