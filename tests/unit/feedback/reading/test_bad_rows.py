"""Faulty rows: one message that names file, row and column; or, where asked, counted and passed over."""

import json
import math

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import load_feedback

GOOD = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Loud."}
TALK = {
    "prompt": [{"role": "user", "content": "Name a colour."}],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "Loud."}],
}
HELPSTEER3 = {"context": TALK["prompt"], "response1": "a", "response2": "b", "overall_preference": 1}
LISTS = {"prompt": "Name a colour.", "chosen": ["Blue."], "rejected": ["Loud.", "Soft."]}
SHOWN = {"messages": TALK["prompt"] + TALK["chosen"]}
ANSWERED = {"prompt": TALK["prompt"], "completion": TALK["chosen"]}
SHARED = {"chosen": "It is blue.", "rejected": "It is loud."}
LEFT_OUT = object()


def path_of(tmp_path, *rows):
    path = tmp_path / "faulty.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def changed(row, **changes):
    return {name: value for name, value in {**row, **changes}.items() if value is not LEFT_OUT}


FAULTS = [
    (GOOD, {"rejected": LEFT_OUT}, "column 'rejected' is missing"),
    (GOOD, {"chosen": None}, "column 'chosen' is null"),
    (GOOD, {"chosen": ""}, "column 'chosen' is empty"),
    (GOOD, {"rejected": "  \n"}, "column 'rejected' is empty"),
    (GOOD, {"prompt": None}, "column 'prompt' is null"),
    (GOOD, {"prompt": " "}, "column 'prompt' is empty"),
    (GOOD, {"chosen": 3}, "column 'chosen' is a number, not text"),
    (GOOD, {"chosen": TALK["chosen"]}, "column 'chosen' is a list, not text"),
    (GOOD, {"prompt": "\ud800"}, "half of a surrogate pair (\\ud800)"),
    (GOOD, {"margin": math.nan}, "column 'margin' is nan"),
    (GOOD, {"margin": math.inf}, "column 'margin' is inf"),
    (GOOD, {"margin": -1}, "the margin is -1.0"),
    (GOOD, {"margin": "much"}, "column 'margin' is 'much', not a number"),
    (GOOD, {"margin": [1]}, "column 'margin' is a list, not a number"),
    (GOOD, {"chosen_critiques": [3]}, "column 'chosen_critiques' holds a number, not text"),
    (TALK, {"prompt": [{"role": "human", "content": "Hi"}]}, "unknown role 'human'"),
    (TALK, {"prompt": [{"role": "system", "content": "Hi"}]}, "no user turn"),
    (TALK, {"prompt": []}, "column 'prompt' is empty"),
    (TALK, {"prompt": LEFT_OUT}, "column 'prompt' is missing"),
    (GOOD | {"chosen": "It is a.", "rejected": "It is b."}, {"prompt": LEFT_OUT}, "column 'prompt' is missing"),
    (TALK, {"prompt": [{"content": "Hi"}]}, "not a message"),
    (TALK, {"prompt": [{"role": "user", "content": 3}]}, "content is a number"),
    (TALK, {"chosen": [{"role": "user", "content": "Blue."}]}, "column 'chosen' has"),
    (TALK, {"chosen": [{"role": "assistant", "content": ""}]}, "ends with an empty response"),
    (TALK, {"prompt": TALK["prompt"] + TALK["chosen"]}, "ends with the turn of role assistant"),
    (HELPSTEER3, {"overall_preference": None}, "column 'overall_preference' is null"),
    (HELPSTEER3, {"overall_preference": math.nan}, "column 'overall_preference' is nan"),
    (HELPSTEER3, {"individual_preference": ["good"]}, "not a list of objects"),
    (HELPSTEER3, {"response2": ""}, "column 'response2' is empty"),
    (HELPSTEER3, {"context": "Hi", "response1": 1}, "column 'response1' is a number, not text"),
    (LISTS, {"chosen": []}, "column 'chosen' has no response with text"),
    (LISTS, {"rejected": ["", None]}, "column 'rejected' has no response with text"),
    (LISTS, {"rejected": ["b", 3]}, "column 'rejected' holds a number, not text"),
    (SHOWN, {"messages": TALK["prompt"]}, "column 'messages' ends with the role user"),
    (SHOWN, {"messages": TALK["chosen"]}, "no user turn"),
    (SHOWN, {"messages": "Hi"}, "column 'messages' is a text, not a list of messages"),
    (ANSWERED, {"completion": TALK["chosen"] * 2}, "column 'completion' has assistant, assistant"),
    (ANSWERED, {"completion": TALK["prompt"]}, "column 'completion' has no turn"),
    (SHARED, {"rejected": "It is "}, "column 'rejected' has nothing after the shared opening"),
]


@pytest.mark.parametrize(("base", "changes", "found"), FAULTS)
def test_a_faulty_row_names_file_and_row(tmp_path, base, changes, found):
    path = path_of(tmp_path, base, base, changed(base, **changes), base)
    with pytest.raises(DataError) as caught:
        load_feedback(path)
    message = str(caught.value)
    assert "faulty.jsonl, row 3" in message
    assert found in message


@pytest.mark.parametrize(("base", "changes", "found"), FAULTS)
def test_a_faulty_row_can_be_passed_over_counted_and_named(tmp_path, base, changes, found):
    del found
    feedback = load_feedback(path_of(tmp_path, base, changed(base, **changes), base), skip_bad_rows=True)
    counts = feedback.counts.files[0]
    assert (counts.rows, counts.rows_used, counts.rows_dropped) == (3, 2, 1)
    [(reason, tally)] = counts.dropped.items()
    assert tally.count == 1 and tally.origins[0].row == 2 and "faulty.jsonl" in tally.origins[0].file
    assert reason and reason in counts.summary()
    assert counts.to_dict()["dropped"][reason]["first_rows"] == [f"{tally.origins[0].file}, row 2"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "found"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Yo", "\n\nHuman: Hi\n\nAssistant:", "column 'rejected' ends with an empty"),
        ("\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Bye", "\n\nHuman: Hi\n\nAssistant: No", "column 'chosen' has"),
        ("\n\nHuman: Hi\n\nAssistant: Yo", "\n\nHuman: Hey\n\nAssistant: Yo", "column 'chosen' has"),
        ("\n\nHuman: \n\nAssistant: Yo", "\n\nHuman: \n\nAssistant: No", "no user turn"),
    ],
)
def test_transcripts_that_make_no_pair(tmp_path, chosen, rejected, found):
    good = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    with pytest.raises(DataError, match=r"faulty\.jsonl, row 2") as caught:
        load_feedback(path_of(tmp_path, good, {"chosen": chosen, "rejected": rejected}))
    assert found in str(caught.value)


def test_plain_texts_that_share_no_prompt(tmp_path):
    with pytest.raises(DataError, match=r"faulty\.jsonl, row 1.*--columns"):
        load_feedback(path_of(tmp_path, {"chosen": "blue", "rejected": "green"}))


def test_feedback_columns_that_are_all_null(tmp_path):
    rated = {"prompt": "Hi", "response": "Yo", "critique": None, "rating": 0.5}
    with pytest.raises(DataError, match=r"comes without feedback.*faulty\.jsonl, row 2"):
        load_feedback(path_of(tmp_path, rated, rated | {"rating": None}))


def test_a_file_of_nothing_but_ties_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"none of the 2 rows.*tie.*faulty\.jsonl"):
        load_feedback(path_of(tmp_path, *[changed(GOOD, rejected=GOOD["chosen"])] * 2))


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no rows.*faulty\.jsonl"):
        load_feedback(path_of(tmp_path))


def test_only_the_first_rows_of_a_reason_are_named_but_all_are_counted(tmp_path):
    tie = changed(GOOD, rejected=GOOD["chosen"])
    counts = load_feedback(path_of(tmp_path, GOOD, *[tie] * 9)).counts.files[0]
    [tally] = counts.dropped.values()
    assert tally.count == 9
    assert [origin.row for origin in tally.origins] == [2, 3, 4, 5, 6]
    assert str(tally) == "9 (row 2, 3, 4, 5, 6, ...)"
