"""Files of every known shape against a small oracle: every row gives the right records, or it is named."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import NAMED_ORIGINS
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.formats import FORMATS
from rrm_lm.feedback.records import Record

# Texts that are not structure and begin with different words, so that no response begins with another or its prompt.
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="[{<&"), max_size=20)
Texts = list[str]  # a prompt and responses
Row = dict[str, Any]
Expected = list[tuple[Any, ...]]


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def bot(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def pair(p: str, c: str, r: str) -> tuple[Any, ...]:
    return ("Comparison", p, c, r)


# For each shape: the row, the records that it holds, and the columns without which it holds none.
SHAPES: dict[str, Callable[..., tuple[Row, Expected, str]]] = {
    "RM-Bench": lambda p, a, b, c, d, e, f: (
        {"prompt": p, "chosen": [a, b, c], "rejected": [d, e, f], "domain": "chat"},
        [pair(p, x, y) for x in (a, b, c) for y in (d, e, f)],
        "prompt chosen rejected",
    ),
    "RewardBench 2": lambda p, a, b, c, *_: (
        {"prompt": p, "chosen": [a], "rejected": [b, c], "subset": "Focus", "num_correct": 1},
        [pair(p, a, b), pair(p, a, c)],
        "prompt chosen rejected",
    ),
    "best of n": lambda p, a, b, c, *_: (
        {"prompt": p, "chosen": [a, b], "rejected": [c]},
        [pair(p, a, c), pair(p, b, c)],
        "prompt chosen rejected",
    ),
    "RewardBench": lambda p, a, b, *_: (
        {"prompt": p, "chosen": a, "rejected": b, "chosen_model": "x", "rejected_model": "y", "subset": "hard"},
        [pair(p, a, b)],
        "prompt chosen rejected",
    ),
    "HelpSteer3": lambda p, a, b, *_: (
        {"context": user(p), "response1": a, "response2": b, "overall_preference": 2},
        [pair(p, b, a)],
        "context response1 response2 overall_preference",
    ),
    "HelpSteer3-Feedback": lambda p, a, b, c, *_: (
        {
            "context": user(p),
            "response1": a,
            "response2": b,
            "feedback1": ["The response is mostly helpful. " + c],
            "feedback2": ["The response is not helpful. " + c],
        },
        [pair(p, a, b)],
        "context response1 response2",
    ),
    "HelpSteer3-Edit": lambda p, a, b, c, *_: (
        {"context": user(p), "original_response": a, "edited_response": b, "feedback": [c]},
        [("Critique", p, a, c), ("Correction", p, a, b, c)],
        "context original_response",
    ),
    "HelpSteer2-Preference": lambda p, a, b, *_: (
        {"prompt": p, "response_1": a, "response_2": b, "preference_strength": -1},
        [pair(p, a, b)],
        "prompt response_1 response_2 preference_strength",
    ),
    "HelpSteer2": lambda p, a, *_: (
        {"prompt": p, "response": a, "helpfulness": 3, "correctness": 2, "coherence": 4},
        [("Rating", p, a, 0.75)],
        "prompt response helpfulness",
    ),
    "SLF5K": lambda p, a, b, c, d, *_: (
        {
            "title": "T",
            "post": p,
            "generated_summary_for_comparison_A": a,
            "generated_summary_for_comparison_B": b,
            "comparison_preference": "Summary B",
            "generated_summary_for_feedback": c,
            "feedback": d,
        },
        [
            pair(slf5k := f"Summarize this post in a few sentences.\n\nTitle: T\n\n{p}", b, a),
            ("Critique", slf5k, c, d),
        ],
        "title post generated_summary_for_comparison_A generated_summary_for_feedback",
    ),
    "two responses and a verdict": lambda p, a, b, *_: (
        {"prompt": p, "answer_1": a, "answer_2": b, "winner": "answer_2"},
        [pair(p, b, a)],
        "prompt answer_1 answer_2 winner",
    ),
    "ranked responses": lambda p, a, b, c, *_: (
        {"prompt": p, "answers": [{"answer": x, "rank": i} for x, i in ((a, 2), (b, 1), (c, 2))]},
        [pair(p, b, a), pair(p, b, c)],
        "prompt answers",
    ),
    "HH transcripts": lambda p, a, b, *_: (
        {"chosen": f"\n\nHuman: {p}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {p}\n\nAssistant: {b}"},
        [pair(p.strip(), a.strip(), b.strip())],
        "chosen rejected",
    ),
    "critiqued pairs": lambda p, a, b, c, *_: (
        {"prompt": p, "chosen": a, "rejected": b, "chosen_critiques": [c], "rejected_rating": 0.25},
        [pair(p, a, b)],
        "prompt chosen rejected",
    ),
    "UltraFeedback-binarized": lambda p, a, b, *_: (
        {
            "prompt": p,
            "chosen": user(p) + bot(a),
            "rejected": user(p) + bot(b),
            "score_chosen": 8.0,
            "score_rejected": 4,
        },
        [pair(p, a, b)],
        "chosen rejected",
    ),
    "preference pairs": lambda p, a, b, *_: (
        {"prompt": user(p), "chosen": bot(a), "rejected": bot(b), "margin": 1.5},
        [pair(p, a, b)],
        "prompt chosen rejected",
    ),
    "preference pairs with implicit prompt": lambda p, a, b, *_: (
        {"chosen": user(p) + bot(a), "rejected": user(p) + bot(b)},
        [pair(p, a, b)],
        "chosen rejected",
    ),
    "unpaired preference": lambda p, a, *_: (
        {"prompt": p, "completion": a, "label": True},
        [("Rating", p, a, 1.0)],
        "prompt completion label",
    ),
    "critiques, ratings and corrections": lambda p, a, b, c, *_: (
        {"prompt": p, "response": a, "critique": b, "rating": 0.5, "corrected": c},
        [("Critique", p, a, b), ("Rating", p, a, 0.5), ("Correction", p, a, c, b)],
        "prompt response",
    ),
    "demonstrations": lambda p, a, *_: ({"messages": user(p) + bot(a)}, [("Demonstration", p, a)], "messages"),
    "goal examples": lambda p, a, *_: ({"prompt": p, "goal_example": a}, [("GoalExample", p, a)], "goal_example"),
}
FIELDS = ("chosen", "rejected", "response", "corrected", "critique", "example")
EXTRA = {"id": [f"x{i}" for i in range(5)], "url": ["http://x"] * 5, "nothing": [None] * 5}


def test_every_shape_is_tested():
    assert set(SHAPES) == {known.name for known in FORMATS}


def content(record: Record) -> tuple[Any, ...]:
    texts = [getattr(record, name) for name in FIELDS if hasattr(record, name)]
    number = [record.rating] if type(record).__name__ == "Rating" else []  # pyright: ignore[reportAttributeAccessIssue]
    return type(record).__name__, record.prompt[-1].content, *texts, *number


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.sampled_from(sorted(SHAPES)))
    extra = draw(st.lists(st.sampled_from(sorted(EXTRA)), unique=True))
    rows: list[Row] = []
    expected: list[Expected | None] = []
    for number in range(draw(st.integers(1, NAMED_ORIGINS))):
        texts = [f"{'pabcdef'[i]}{number} {draw(text)}" for i in range(7)]
        row, records, needed = SHAPES[shape](*texts)
        fault = draw(st.sampled_from(["", "", *needed.split()])) if number else ""
        if fault:
            row[fault] = draw(st.sampled_from([None, [] if isinstance(row[fault], list) else None]))
        row |= {name: EXTRA[name][number] for name in extra}
        rows.append(dict(draw(st.permutations(list(row.items())))))
        expected.append(None if fault else records)
    return {"shape": shape, "rows": rows, "expected": expected, "extra": extra}


def write(folder: Any, rows: list[Row], kind: str, encoding: str, packed: bool) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    path = folder / f"mine.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(full), path)
        return str(path)
    data = json.dumps(full, ensure_ascii=False) if kind == "json" else ""
    data = data or "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(data.encode(encoding)) if packed else data.encode(encoding))
    return str(path)


@settings(max_examples=150, deadline=None)
@given(
    file=files(),
    kind=st.sampled_from(["jsonl", "json", "parquet"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    packed=st.booleans(),
)
def test_every_row_of_every_shape_is_read_right_or_named(tmp_path_factory, file, kind, encoding, packed):
    feedback = load_feedback(
        write(tmp_path_factory.mktemp("any"), file["rows"], kind, encoding, packed), skip_bad_rows=True
    )
    counts = feedback.counts.files[0]
    found: dict[int, Expected] = defaultdict(list)
    for record in feedback.records():
        found[record.origin.row].append(content(record))
    expected = dict(enumerate(file["expected"], 1))
    assert counts.format == file["shape"]
    assert {row: sorted(records) for row, records in found.items()} == {
        row: sorted(records) for row, records in expected.items() if records is not None
    }
    named = {origin.row for reason, tally in counts.dropped.items() for origin in tally.origins if "tie" not in reason}
    assert named == {row for row, records in expected.items() if records is None}
    for name in file["extra"]:
        assert name == "nothing" or name in counts.summary() or (name == "id" and "chosen" in file["rows"][0])


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_file_whose_only_row_is_broken_is_refused(tmp_path, shape):
    row, _, needed = SHAPES[shape](*("p", "a", "b", "c", "d", "e", "f"))
    broken = [row | {name: None} for name in needed.split()]
    for one in broken:
        (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(one) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match="row 2"):
            load_feedback(str(tmp_path / "mine.jsonl"), skip_bad_rows=False)
