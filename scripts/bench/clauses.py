"""Critique clauses labeled by reading: what a clause asks for (`clauses.jsonl`), and how to read that file.

The labels were written before the lexicon that is measured on them. Each line has

- `half`: `dev` for working on the reader, `final` for the one measurement at the end;
- `source`: `own` (written for this file, with its `text`) or `feedbackqa` (a random sample of the clauses that people
  wrote about answers of FeedbackQA, train part). The file has no text of FeedbackQA: `row` (from 0), `side`,
  `critique`, `start` and `end` locate the clause in a file of comparisons with `chosen_critiques` and
  `rejected_critiques`, and `sha256` (its first 16 digits) checks it;
- `aspects`: what the clause is about. Several names mean that a careful reader could choose any of them ("does not
  mention the flu": `answers` or `on_topic`). An empty list means that it names no aspect ("This is great!", or a bare
  description of the response), null that the clause alone does not decide; such clauses are left out;
- `wants`: whether the speaker wants `more` or `less` of the aspect in general: "too long" and "nice and short" both
  want less `length`;
- `verdict`: `fault` if this response fails in it, `merit` if it succeeds.

One author, a language model, wrote the own clauses, all labels and later the lexicon: the lexicon was not tuned on the
final half, but its author had read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.files import read_rows

LABELS = Path(__file__).with_suffix(".jsonl")


@dataclass(frozen=True, slots=True)
class Clause:
    """A labeled clause; the fields are those of `clauses.jsonl`."""

    half: str
    source: str
    text: str
    aspects: tuple[str, ...]
    wants: str | None
    verdict: str | None


def read_clauses(half: str, feedbackqa: Path | None) -> list[Clause]:
    """The decided clauses of one half, without FeedbackQA's if no file is given. Raises DataError if the file is
    another one than was labeled.
    """
    rows = dict(enumerate(row for _, row in read_rows(feedbackqa))) if feedbackqa else {}
    clauses = []
    for line in LABELS.read_text().splitlines():
        label = json.loads(line)
        if label["half"] != half or label["aspects"] is None or (label["source"] == "feedbackqa" and not rows):
            continue
        text = label.get("text") or _text(label, rows, feedbackqa)
        clauses.append(Clause(half, label["source"], text, tuple(label["aspects"]), label["wants"], label["verdict"]))
    return clauses


def _text(label: dict, rows: dict, path: Path | None) -> str:
    critiques = rows.get(label["row"], {}).get(f"{label['side']}_critiques") or []
    text = critiques[label["critique"]] if label["critique"] < len(critiques) else ""
    text = text[label["start"] : label["end"]]
    if hashlib.sha256(text.encode()).hexdigest()[:16] != label["sha256"]:
        raise DataError(
            "This is another version of FeedbackQA than the one that was labeled",
            where=f"{path}, row {label['row'] + 1}",
            expected=f"{label['side']}_critiques with a clause whose SHA-256 begins with {label['sha256']}",
        )
    return text
