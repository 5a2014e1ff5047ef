"""The table of formats in data/README.md names every shape that is read, and its examples are read or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.datasets import feedback_of_rows
from rrm_lm.feedback.reading.formats.shapes import FORMATS, PROMPTS
from rrm_lm.feedback.reading.prompts import table_prompts
from rrm_lm.feedback.reading.tables import SourceTable

TEXT = (Path(__file__).parents[3] / "data" / "README.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", TEXT.partition("## An example")[0], re.MULTILINE)[1:])
BLOCKS = [dict(line.split(": ", 1) for line in block.strip().splitlines()) for block in TEXT.split("```")[1::2]]
EXAMPLES, REFUSALS = BLOCKS
KINDS = ("comparisons", "critiques", "ratings", "corrections", "demonstrations", "goal examples")


def test_every_shape_has_a_row_and_an_example() -> None:
    names = [known.name for known in (*FORMATS, PROMPTS)]
    assert list(TABLE) == names
    assert list(EXAMPLES) == names


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.name)
def test_an_example_is_read_as_its_shape_and_gives_what_the_table_says(known) -> None:
    feedback = feedback_of_rows([json.loads(EXAMPLES[known.name])])
    [file] = feedback.counts.files
    assert (file.format, file.rows_used) == (known.name, 1)
    assert not any("(" in column for column in file.unread), "an unread column matters"
    stated = {kind for kind in KINDS if re.search(rf"\b{kind}\b", TABLE[known.name].partition(" of a prompt's")[0])}
    made = {kind.replace("_", " ") for kind in feedback.sizes()}
    pairs = {"nine comparisons", "each chosen response against each rejected one", "a comparison of each two"}
    if any(TABLE[known.name].startswith(start) for start in pairs):
        stated = {"comparisons"}
    assert made <= stated and (made & stated)


def test_the_example_of_prompts_is_read() -> None:
    counts: list[FileCounts] = []
    table = SourceTable([(1, json.loads(EXAMPLES["prompts"]))], "mine", "")
    assert len(table_prompts(table, None, False, counts=counts)) == 1 and counts[0].format == "prompts"


@pytest.mark.parametrize("name", REFUSALS)
def test_an_example_of_a_refusal_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=re.escape(name)):
        feedback_of_rows([json.loads(REFUSALS[name])])


SHORT = {
    "`chosen`, `rejected`": ("preference pairs", "critiqued pairs", "HH transcripts", "UltraFeedback-binarized"),
    "two responses and a verdict; ranks": ("two responses and a verdict", "ranked responses"),
    "`response` with `rating`, `label`, `critique`, `corrected`": ("critiques, ratings and corrections",),
    "`messages` or `completion`": ("demonstrations",),
    "`prompt` alone": (),
}


def test_the_short_table_of_the_readme_agrees_with_this_one() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert "(data/README.md)" in readme
    rows = dict(
        re.findall(r"^\| (.+) \| (.+) \| .+ \|$", readme.partition("| columns |")[2], re.MULTILINE)[: len(SHORT)]
    )
    assert list(rows) == list(SHORT)
    for columns, shapes in SHORT.items():
        for shape in shapes:
            made = {kind.replace("_", " ") for kind in feedback_of_rows([json.loads(EXAMPLES[shape])]).sizes()}
            assert made and made <= set(rows[columns].split(", ")), shape
