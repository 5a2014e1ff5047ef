"""Situations from public reports, each with rows of our own: what was meant is read, or the file is refused by name."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.feedback.records import Message

GITHUB = "https://github.com/"
ASK = "Where in Europe is Oslo?"
GOOD, BAD = "Oslo is the capital of Norway.", "It is somewhere in Sweden."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def pairs(feedback: Feedback) -> list[tuple[str, str, str]]:
    assert not feedback.demonstrations
    return [(c.prompt[-1].content, c.chosen, c.rejected) for c in feedback.comparisons]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(ASK), bot(GOOD)], "rejected_response": BAD},
        {"messages": [user(ASK), bot(GOOD)], "rejected_response": [bot(BAD)]},
        {"messages": [user(ASK), bot(GOOD)], "rejected_messages": [user(ASK), bot(BAD)]},
        {"query": ASK, "response": GOOD, "rejected_response": BAD},
        {"prompt": ASK, "completion": GOOD, "rejected": BAD},
    ],
)
def test_a_response_with_a_rejected_one_is_a_pair(load, row):
    """https://github.com/modelscope/ms-swift/issues/3888 and /7314, https://github.com/Kwai-YuanQi/MM-RLHF/issues/8:
    the preferred response was imitated and the preference was lost."""
    assert pairs(load(row)) == [(ASK, GOOD, BAD)]


def test_a_row_without_its_rejected_response_is_named(load):
    """https://github.com/modelscope/ms-swift/issues/5712: all rows were dropped, `rejected_response` was null."""
    row = {"messages": [user(ASK), bot(GOOD)], "rejected_response": BAD}
    with pytest.raises(DataError, match=r"column 'rejected' is null.*row 2"):
        load(row, row | {"rejected_response": None})


@pytest.mark.parametrize("name", ["bad_answer", "worse", "response_2", "improved", "chosen", "negative"])
def test_a_second_response_of_any_name_is_never_ignored(load, name):
    """https://github.com/modelscope/ms-swift/issues/3888, under names that no format has."""
    with pytest.raises(DataError, match=f"column '{name}' is not read .* another response"):
        load({"prompt": ASK, "completion": GOOD, name: BAD}, {"prompt": "Who is it?", "completion": GOOD, name: BAD})


def test_response_chosen_and_rejected_of_a_question_that_was_rendered(load):
    """https://github.com/shibing624/MedicalGPT/issues/358: the question holds Llama 2's template."""
    question = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhere is Oslo? [/INST]"
    [record] = load({"question": question, "response_chosen": GOOD, "response_rejected": BAD}).comparisons
    assert record.prompt == (Message("system", "Be brief."), Message("user", "Where is Oslo?"))


def test_fields_of_listed_responses_that_are_not_read_are_named(load):
    """https://github.com/OpenBMB/UltraFeedback/issues/8: responses with the highest score and a bad critique. The
    critiques and a system prompt of each response were ignored without a word."""
    listed = [
        {"response": text, "overall_score": score, "critique": "Bad.", "custom_system_prompt": "Be a pirate."}
        for text, score in ((GOOD, 10.0), (BAD, 7.0))
    ]
    feedback = load({"instruction": ASK, "completions": listed})
    assert pairs(feedback) == [(ASK, GOOD, BAD)]
    for name in ("critique", "custom_system_prompt"):
        assert f"the field '{name}' of completions was not read: 1 (row 1)" in feedback.counts.summary()


@pytest.mark.parametrize(
    ("url", "text", "remark"),
    [
        ("argosopentech/argos-translate/issues/39", "It&apos;s Norway &amp; more.", "HTML entities"),
        (
            "google-research/text-to-text-transfer-transformer/issues/2",
            r"Dear Ola,\nit is Norway.",
            "in place of line ends",
        ),
        ("Oslonline/dithering-studio/issues/3", "Le café est là".encode().decode("cp1252"), "another encoding"),
    ],
)
def test_texts_that_were_damaged_before_are_named(load, url, text, remark):
    """https://github.com/argosopentech/argos-translate/issues/39 (the model wrote HTML entities),
    https://github.com/google-research/text-to-text-transfer-transformer/issues/2,
    https://github.com/Oslonline/dithering-studio/issues/3: nothing was said about what models then learn to write."""
    good = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    assert remark in load(good | {"chosen": text}).counts.summary(), GITHUB + url
    assert remark not in load(good | {"chosen": "AT&T; a & b, É, café\nC:\\new"}).counts.summary()


@pytest.mark.parametrize(("high", "low"), [(0.9, 0.8), ("thumbs up", "thumbs down"), ("👍", "👎"), ("good", "bad")])
def test_feedback_that_is_a_number_or_a_verdict_is_a_rating(load, high, low):
    """https://github.com/hiyouga/LlamaFactory/issues/6470: feedback from 0 to 1 was refused because it is no text, and
    verdicts were critiques without a rating."""
    rows = ({"query": ASK, "response": text, "feedback": one} for text, one in ((GOOD, high), (BAD, low)))
    feedback = load(*rows)
    assert [rating.rating > 0.85 for rating in feedback.ratings] == [True, False]
    assert pairs(feedback) == [(ASK, GOOD, BAD)] and not feedback.critiques


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.parquet", "mine.json"])
def test_a_git_lfs_pointer_is_told_as_one(load, name):
    """https://github.com/InertExpert2911/Mutual_Fund_Data/issues/1, https://github.com/policy-gradient/GRPO-Zero/issues/1:
    the message spoke of a corrupted file."""
    with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
        load("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1234\n", name=name)


@pytest.mark.parametrize(
    ("begin", "what"), [("<!DOCTYPE html><html>", "HTML page"), ("PK\x03\x04", "ZIP"), ("PAR1", "Parquet")]
)
def test_a_file_of_another_kind_is_told_as_one(load, begin, what):
    """https://github.com/policy-gradient/GRPO-Zero/issues/1, for other kinds of wrong files."""
    for name in ("mine.csv", "mine.jsonl"):
        with pytest.raises(DataError, match=what):
            load(begin + "\n", name=name)


def test_messages_stored_as_lists_of_roles_and_contents(tmp_path):
    """https://github.com/huggingface/datasets/issues/888 and /7137: `Sequence` stores a list of messages so. It was
    refused, with the remark that it is an object."""
    talks = [{"role": ["user", "assistant"], "content": [ASK, text]} for text in (GOOD, BAD)]
    pq.write_table(pa.table({"chosen": [talks[0]], "rejected": [talks[1]]}), tmp_path / "mine.parquet")
    assert pairs(load_feedback(str(tmp_path / "mine.parquet"))) == [(ASK, GOOD, BAD)]


@pytest.mark.parametrize(
    "table",
    [
        " prompt,chosen ,rejected\n{},{},{}\n",
        '"prompt", "chosen", "rejected"\n"{}", "{}", "{}"\n',
        "prompt,chosen,rejected,,\n{},{},{},,\n",
        "prompt,chosen,rejected,\n{},{},{}\n",
        "sep=;\r\nprompt;chosen;rejected\r\n{};{};{}\r\n",
    ],
)
def test_headers_as_spreadsheets_write_them(load, table):
    """https://github.com/huggingface/autotrain-advanced/issues/101 (a space in a name),
    https://github.com/dathere/datapusher-plus/pull/84 (empty names at the right): refused."""
    assert pairs(load(table.format(ASK, GOOD, BAD), name="mine.csv")) == [(ASK, GOOD, BAD)]
    if ",," in table:
        with pytest.raises(DataError, match="cells"):
            load(
                table.format(ASK, GOOD, BAD).replace(",,\n", ",,x\n").replace("rejected,,x", "rejected,,"),
                name="mine.csv",
            )


@pytest.mark.parametrize(
    ("url", "rows", "expected"),
    [
        ("huggingface/trl/pull/6472", [{"chosen": "The sky is blue", "rejected": "The sky is blue, and vast."}], [
            ("The sky is", "blue", "blue, and vast.")]),
        ("axolotl-ai-cloud/axolotl/issues/1645", [{"chosen": [user("Hi"), bot("Yo"), user(ASK), bot(GOOD)],
          "rejected": [user("Hi"), bot("Yo"), user(ASK), bot(BAD)]}], [(ASK, GOOD, BAD)]),
        ("hiyouga/LlamaFactory/issues/3354", [{"source": "S", "prompt": ASK, "question": ASK,
          "chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]}], [(ASK, GOOD, BAD)]),
        ("OpenRLHF/OpenRLHF/pull/363", [{"prompt": [user(ASK)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}],
         [(ASK, GOOD, BAD)]),
        ("allenai/reward-bench/issues/140", [{"prompt": ASK, "chosen": f"{ASK} {GOOD}", "rejected": f"{ASK} {BAD}"}],
         [(ASK, GOOD, BAD)]),
        ("hiyouga/LlamaFactory/issues/2962", [{"chosen": [user("Hi"), user(ASK), bot(GOOD)],
          "rejected": [user("Hi"), user(ASK), bot(BAD)]}], [(ASK, GOOD, BAD)]),
        ("axolotl-ai-cloud/axolotl/issues/752", [{"conversations": [{"from": "user", "value": ASK}],
          "chosen": {"from": "assistant", "value": GOOD}, "rejected": {"from": "assistant", "value": BAD}}],
         [(ASK, GOOD, BAD)]),
        ("huggingface/datasets/issues/622", [{"prompt": ASK, "chosen": "a\r\nb\rc", "rejected": BAD}], [
            (ASK, "a\r\nb\rc", BAD)]),
    ],
)  # fmt: skip
def test_situations_that_are_read_as_meant(load, url, rows, expected):
    """Public reports of what other programs read wrong, at github.com/ and the path."""
    assert pairs(load(*rows)) == expected, GITHUB + url


@pytest.mark.parametrize(
    ("url", "rows", "error"),
    [
        ("huggingface/trl/pull/6079", [{"chosen": "Paris ", "rejected": "London"}],
         "do not begin with a shared prompt"),
        ("huggingface/smol-course/issues/260", [{"messages": [user(ASK), bot(GOOD), user("And?"), user("Rome.")]}],
         "ends with the role user"),
        ("huggingface/trl/pull/2127", [{"prompt": ASK, "completions": ["One.", "Two."], "labels": [True, False]}],
         "match no known feedback format: prompt, completions, labels"),
        ("hiyouga/LlamaFactory/issues/3364", [{"instruction": ASK, "output": [GOOD, BAD]}], "is a list of texts"),
        ("hiyouga/LlamaFactory/issues/4683", [{"instruction": ASK, "history": [["Hi", "Yo"]], "output": GOOD}],
         "'history'"),
        ("modelscope/ms-swift/issues/7184", [{"messages": [user(ASK), {"role": "tool_call", "content": "{}"},
          bot(GOOD)]}],
         "unknown role 'tool_call'"),
        ("kakao/diatool-dpo/issues/2", [{"chosen": json.dumps({"messages": [user(ASK), bot(GOOD)], "tools": []}),
          "rejected": json.dumps({"messages": [user(ASK), bot(BAD)], "tools": []})}], "message list as text"),
        ("OpenRLHF/OpenRLHF/issues/860", [{"input": ASK, "output": GOOD, "reward": r} for r in (0.9, -2)], "'reward'"),
        ("stochasticai/xTuring/issues/127", [{"question": ASK, "answer": GOOD, "relevance": r} for r in (0, 1)],
         "'relevance'"),
        ("argilla-io/distilabel/issues/277", [{"input": ASK, "generations": [GOOD, BAD], "rating": [9.0, 2.0]}],
         "match no known feedback format: input, generations, rating"),
    ],
)  # fmt: skip
def test_situations_that_are_refused_by_name(load, url, rows, error):
    """Public reports of what other programs read wrong or crashed at, at github.com/ and the path."""
    with pytest.raises(DataError) as caught:
        load(*rows)
    assert error in str(caught.value), GITHUB + url


def test_cells_over_several_lines_and_json_lines_under_another_name(load):
    """https://github.com/Agenta-AI/agenta/issues/924 (line ends in cells), https://github.com/Hon-Wong/Elysium/issues/17
    (JSON Lines named .json), https://github.com/zai-org/GLM-4/issues/591 (one broken line of 719)."""
    table = f'prompt,chosen,rejected\n{ASK},"one\n\ntwo, three",{BAD}\n'
    assert pairs(load(table, name="mine.csv")) == [(ASK, "one\n\ntwo, three", BAD)]
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    assert pairs(load(row, row, name="mine.json")) == [(ASK, GOOD, BAD)] * 2
    with pytest.raises(DataError, match="row 3"):
        load(row, row, '{"prompt": "x", : "y"}\n', row)
