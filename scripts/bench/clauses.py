"""How often the reader of critiques is right about clauses that were labeled by reading (`clauses.jsonl`).

    python scripts/bench/clauses.py --feedbackqa PATH       (writes results/clauses.json; seconds)
    python scripts/bench/clauses.py --feedbackqa PATH --show dev      (prints what is read differently)

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

One author wrote the own clauses, all labels and later the lexicon: the lexicon was not tuned on the
final half, but its author had read it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import SHARED, save

from rrm_lm.errors import DataError
from rrm_lm.evaluation.statistics.metrics import share
from rrm_lm.feedback.criteria import reader
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


def right(clause: Clause, readings: Sequence[reader.Reading]) -> dict[str, bool]:
    """Whether the surest reading has the label's direction (wanted and verdict), and also its aspect."""
    first = readings[0]
    direction = (first.wants, "merit" if first.is_merit else "fault") == (clause.wants, clause.verdict)
    return {"direction": direction, "direction_and_aspect": direction and first.aspect in clause.aspects}


def measured(clauses: Sequence[Clause]) -> dict[str, Any]:
    """Shares with intervals over clauses. `coverage`: clauses that name an aspect and are read; `direction` and
    `direction_and_aspect`: of those, read right; `false`: clauses that name none and are read nevertheless;
    `precision`: of all clauses that are read, those with the right direction and aspect.
    """
    read = [reader.read_clause(one.text) for one in clauses]
    named = [(one, found) for one, found in zip(clauses, read, strict=True) if one.aspects]
    answers = [right(one, found) for one, found in named if found]
    empty = [bool(found) for one, found in zip(clauses, read, strict=True) if not one.aspects]
    shares = {
        "coverage": [bool(found) for _, found in named],
        "direction": [one["direction"] for one in answers],
        "direction_and_aspect": [one["direction_and_aspect"] for one in answers],
        "false": empty,
        "precision": [one["direction_and_aspect"] for one in answers] + [False] * sum(empty),
    }
    return {name: asdict(share(values, list(range(len(values))))) for name, values in shares.items()}


def show(clauses: Sequence[Clause]) -> None:
    """Print the clauses that are read differently from their label."""
    for one in clauses:
        found = reader.read_clause(one.text)
        if not one.aspects and not found:
            continue
        if not (one.aspects and found and right(one, found)["direction_and_aspect"]):
            label = (", ".join(one.aspects), one.wants, one.verdict)
            print(one.text, "|", *label, "|", *((r.aspect, r.wants, r.is_merit) for r in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feedbackqa", type=Path, default=SHARED / "feedbackqa" / "train.jsonl.gz")
    parser.add_argument("--show", choices=("dev", "final"), help="print what is read differently, and write nothing")
    args = parser.parse_args()
    if args.show:
        return show(read_clauses(args.show, args.feedbackqa))
    lexicon = Path(reader.__file__).with_name("lexicon.yaml").read_bytes()
    found: dict[str, Any] = {"lexicon_sha256": hashlib.sha256(lexicon).hexdigest()}
    for half in ("dev", "final"):
        clauses = read_clauses(half, args.feedbackqa)
        parts = {"all": clauses} | {name: [c for c in clauses if c.source == name] for name in ("feedbackqa", "own")}
        found[half] = {name: measured(part) for name, part in parts.items()}
    print(json.dumps(found["final"], indent=1), save("clauses.json", found))


if __name__ == "__main__":
    main()
