"""Any file against a small oracle: every row is the right record, or it is named; every column is read or named."""

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import NAMED_ORIGINS
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison, Rating, Record

# Texts that no cell of a table changes: no blank ones, no carriage returns, and nothing that is structure.
text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="[{<"), min_size=1, max_size=30)
text = text.filter(lambda value: value.strip() and not value.lstrip().startswith("Human:"))
PROMPTS = ("prompt", "question", "instruction", "query")
SYSTEMS = (None, "system", "system_prompt")
# Further columns: their values, and whether they refuse the file.
MORE: dict[str, tuple[list[Any], bool]] = {
    "id": ([1, 2, 3, 4, 5], False),
    "notes": (["some words of a note"] * 5, False),
    "nothing": ([None] * 5, False),
    "history": (["an earlier talk of them"] * 5, True),
    "reasoning": (["first this, then that"] * 5, True),
    "is_swapped": ([True, False, True, False, True], True),
    "preamble": (["You are a tired clerk."] * 5, True),
    "dossier": ([f"It was on day {i} that " + "the travelers went up the long river " * 4 for i in range(5)], True),
    "input": (["a long document", None, "another one", None, "x"], True),
}
SHAPES: dict[str, tuple[str, str | None, Any]] = {
    "pair": ("chosen", "rejected", None),
    "winner": ("response_a", "response_b", ("model_a", "model_b")),
    "better": ("response_0", "response_1", (0, 1)),
    "judged": ("completion", None, (True, False)),
}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.sampled_from(sorted(SHAPES)))
    first, second, verdicts = SHAPES[shape]
    prompt, system = draw(st.sampled_from(PROMPTS)), draw(st.sampled_from(SYSTEMS))
    more = draw(st.lists(st.sampled_from(sorted(MORE)), unique=True, max_size=2))
    if prompt == "instruction" and "input" in more:  # Alpaca's columns, which are read as one prompt
        more.remove("input")
    verdict_name = {"winner": "winner", "better": "better_response_id", "judged": "label"}.get(shape)
    rows, expected = [], []
    for number in range(draw(st.integers(2, NAMED_ORIGINS))):
        asked, texts = draw(text), (draw(text), draw(text))
        better = number if number < 2 else draw(st.integers(0, 1))  # a file shows both verdicts
        row: dict[str, Any] = {prompt: asked, first: texts[0], **({second: texts[1]} if second else {})}
        row |= {system: "Be kind."} if system else {}
        row |= {verdict_name: verdicts[better]} if verdict_name and verdicts else {}
        row |= {name: MORE[name][0][number] for name in more}
        fault: str = draw(st.sampled_from(["none", "none", "none", prompt, first])) if number > 1 else "none"
        if fault in row:
            row[fault] = draw(st.sampled_from([None, "", "  "]))
        rows.append(dict(draw(st.permutations(list(row.items())))))
        if fault != "none" or (second and texts[0].strip() == texts[1].strip()):
            expected.append(None)
        elif shape == "judged":
            expected.append((system, asked, texts[0], 1.0 - better))
        else:
            order = texts if shape == "pair" or better == 0 else texts[::-1]
            expected.append((system, asked, *order))
    return {"rows": rows, "expected": expected, "more": more}


def write(path: Any, rows: list[dict[str, Any]], kind: str, encoding: str) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(full), path.with_suffix(".parquet"))
        return str(path.with_suffix(".parquet"))
    if kind in ("jsonl", "json"):
        data = json.dumps(full) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        suffix = "." + kind
    else:
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=kind, quoting=csv.QUOTE_ALL).writerows([names, *(row.values() for row in full)])
        data, suffix = stream.getvalue(), ".csv"
    path = path.with_suffix(suffix)
    path.write_bytes(data.encode(encoding))
    return str(path)


def content(record: Record) -> tuple[Any, ...]:
    system = record.prompt[0].content if record.prompt[0].role == "system" else None
    asked = record.prompt[-1].content
    if isinstance(record, Comparison):
        return system, asked, record.chosen, record.rejected
    assert isinstance(record, Rating)
    return system, asked, record.response, record.rating


@settings(max_examples=150, deadline=None)
@given(
    file=files(),
    kind=st.sampled_from(["jsonl", "json", "parquet", ",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_row_is_the_right_record_or_named_and_every_column_is_read_or_named(
    tmp_path_factory, file, kind, encoding
):
    path = write(tmp_path_factory.mktemp("any") / "mine", file["rows"], kind, encoding)
    refusing = [name for name in file["more"] if MORE[name][1]]
    expected = file["expected"]
    try:
        feedback = load_feedback(path, skip_bad_rows=True)
    except DataError as error:
        assert any(repr(name) in str(error) for name in refusing) or not any(expected), str(error)
        return
    assert not refusing, feedback.counts.summary()
    counts = feedback.counts.files[0]
    records = [*(c for c in feedback.comparisons if not feedback.ratings), *feedback.ratings]
    assert {record.origin.row: content(record) for record in records} == {
        row: ("Be kind.", *values[1:]) if values[0] else values for row, values in enumerate(expected, 1) if values
    }
    named = {origin.row for tally in counts.dropped.values() for origin in tally.origins}
    assert named == {row for row, values in enumerate(expected, 1) if values is None}
    for name in file["more"]:
        assert name == "nothing" or repr(name) in counts.summary()
