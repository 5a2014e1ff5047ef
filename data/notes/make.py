"""Makes the notes set: `python data/notes/make.py`.

Writes to this folder, for each part: the questions, what both users demonstrate, and what they say of sampled
responses; for training, contrasts: what the plain user demonstrates, compared with three wrong answers; and
`statistics.json`. Responses are sampled from SmolLM2 (`manners.py`; an hour on two cores, resumable) and saved in
`responses.jsonl.gz`; while that file exists, the script takes seconds and gives the same bytes every time, which a test
checks. `--resample` samples them again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from build import MORE_NOTES, Question, by_overlap, more_questions, questions
from comparisons import (
    Comparison,
    Subject,
    comparisons,
    contrasts,
    demonstration,
    full_answer,
    missing,
    record,
    shown_against,
    summary,
)
from manners import ROWS_PER_QUESTION, copies_example, sample_responses, sample_tuned, tune

from rrm_lm import storage
from rrm_lm.simulated.note_users import WEIGHTS, NoteUser, request_of

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pairs import judged
from sampled import read_responses, write_gzipped

HERE = Path(__file__).resolve().parent
SEED = 0
PARTS = ("train", "validation", "test")
RULES: dict[str, Callable[[Question], str]] = {
    "first value of the type": lambda question: question.value if question.first else question.other,
    "last value of the type": lambda question: question.other if question.first else question.value,
    "value in the sentence that shares most words": by_overlap,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and what the card reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resample", action="store_true", help="sample the responses again")
    resample = parser.parse_args(arguments).resample
    by_part = {part: [question for question in questions() if question.part == part] for part in PARTS}
    for part, asked in by_part.items():
        write_gzipped(HERE / f"{part}_questions.jsonl.gz", [question.row() for question in asked])
        for manner in WEIGHTS:
            shown = [demonstration(question.row(), manner) for question in asked]
            write_gzipped(HERE / f"{part}_{manner}_demonstrations.jsonl.gz", shown)
    report = {part: statistics(asked) for part, asked in by_part.items()}
    sampled = sampled_rows([question for asked in by_part.values() for question in asked], resample=resample)
    for manner in WEIGHTS:
        for part in PARTS:
            user = NoteUser.from_file(HERE / f"{part}_questions.jsonl.gz", manner)
            groups = judged([row for row in sampled if row["part"] == part], user, "prompt", keep_shared=True)
            chosen = comparisons(groups, user, subjects(by_part[part], manner), f"{manner} {part}")
            write_gzipped(HERE / f"{part}_{manner}.jsonl.gz", [record(comparison, user) for comparison in chosen])
            report[part][manner] = summary(chosen, user)
    report["train"]["contrasts"], shown = shown_contrasts(by_part["train"], sampled)
    write_gzipped(HERE / "train_plain_contrasts.jsonl.gz", shown)
    storage.write_json(HERE / "statistics.json", report)
    print(storage.json_text(report))


def shown_contrasts(asked: Sequence[Question], sampled: Sequence[dict]) -> tuple[dict, list[dict]]:
    """What the plain user demonstrates, compared with wrong answers, and their counts: to questions about other notes
    of the training patterns, and, where the wrong answer is a sampled response, to the questions of the training part.
    """
    more = more_questions()
    user = NoteUser(request_of(question.row(), "more_questions") for question in [*more, *asked])
    pairs = [pair for prompt, one in subjects(more, "plain").items() for pair in contrasts(prompt, one, user)]
    pairs += [pair for number, q in enumerate(more) if (pair := also_said(q, more, number % 3, user)) is not None]
    groups = judged([row for row in sampled if row["part"] == "train"], user, "prompt", keep_shared=True)
    for prompt, one in subjects(asked, "plain").items():
        pairs += missing(prompt, groups.get(prompt, ()), one, user)
    counts = {"notes": MORE_NOTES, "questions": len(more), **Counter(pair.made for pair in pairs)}
    return counts, [record(pair, user) for pair in pairs]


def also_said(question: Question, asked: Sequence[Question], turn: int, user: NoteUser) -> Comparison | None:
    """At turn 0, the demonstration against one that also says the same of the other thing ("both"); at turn 1, against
    an answer to a question about another type of value ("aside": who, where the question is when); else nothing.
    """
    row, same = question.row(), [one for one in asked if one.note == question.note]
    answer, shown = full_answer(row), demonstration(row, "plain")["completion"][0]["content"]
    close = shown[len(answer) :]
    if turn == 0:
        (other,) = (one for one in same if one.kind == question.kind and one.value == question.other)
        return shown_against(row["prompt"], shown, f"{answer} {full_answer(other.row())}{close}", "both", user)
    aside = [one for one in same if one.kind != question.kind]
    if turn != 1 or not aside:
        return None
    # Of two values, the one at the same place mostly stands in the same sentence.
    chosen = next((one for one in aside if one.first == question.first), aside[0])
    return shown_against(row["prompt"], shown, full_answer(chosen.row()) + close, "aside", user)


def subjects(asked: Sequence[Question], manner: str) -> dict[str, Subject]:
    """What each question is about, by prompt. The wrong value of a question is the right one of another."""
    by_value = {(q.note, q.kind, q.value): q for q in asked}
    found = {}
    for q in asked:
        other = by_value[q.note, q.kind, q.other]
        shown, elsewhere = (demonstration(one.row(), manner)["completion"][0]["content"] for one in (q, other))
        if manner == "plain":  # the same close on both
            elsewhere = full_answer(other.row()) + shown[len(full_answer(q.row())) :]
        found[q.row()["prompt"]] = Subject.of(q.note, q.say, q.value, other.say, q.other, shown, elsewhere)
    return found


def sampled_rows(asked: Sequence[Question], *, resample: bool) -> list[dict]:
    """The sampled responses, from `responses.jsonl.gz` or from the model, without those that repeat an example."""
    kept, partial = HERE / "responses.jsonl.gz", HERE / "responses.partial.jsonl"
    if resample or not kept.exists():
        prompts = [(question.part, question.row()["prompt"]) for question in asked]
        adapter = tune(HERE / "train_plain_demonstrations.jsonl.gz", HERE / "tuned")
        sample_tuned(prompts, adapter, ROWS_PER_QUESTION * len(prompts), partial, SEED)
        sample_responses(prompts, partial, SEED)
        write_gzipped(kept, read_responses(partial))
        partial.unlink()
        shutil.rmtree(adapter)
    with gzip.open(kept, "rt", encoding="utf-8") as stream:
        return [row for row in map(json.loads, stream) if not copies_example(row["response"])]


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


if __name__ == "__main__":
    main()
