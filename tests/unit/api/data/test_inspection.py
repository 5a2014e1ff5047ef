"""What a user sees before training: counts, lengths, overlaps, repeats, and rows as the model sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rrm_lm
from rrm_lm.api.data.inspection import count_tokens, inspect_feedback, inspect_sources, show_row
from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, feedback_of_rows
from rrm_lm.feedback.records import Correction, Demonstration, Message
from rrm_lm.settings.feedback import InspectArguments
from tests.smoke.commands import pair_rows, write_rows
from tests.tiny import comparison, critique, origin, prompt_of, rating, tiny_chat

PAIR = {"prompt": "where is it?", "chosen": "the answer is yes", "rejected": "no"}


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{**PAIR, "prompt": f"where is number {n}?", **more} for n in range(count)]


def inspected(path: Path, data: list[dict[str, Any]], **settings: Any) -> Any:
    return inspect_sources(InspectArguments(dataset=[str(write_rows(path / "mine.jsonl", data))], **settings))


class TestCounts:
    def test_by_source_topic_and_split(self, tmp_path: Path) -> None:
        rows = [row | {"source": "web", "topic": "ab"[n > 3]} for n, row in enumerate(pairs(10, chosen_critiques="x"))]
        found = inspected(tmp_path, rows, eval_fraction=0.2)
        both = found.counts["train"]["comparisons"] + found.counts["held out"]["comparisons"]
        assert both == {"web / a": 4, "web / b": 6}
        assert found.counts["held out"]["comparisons"].total() == 2
        assert found.sizes == {
            "comparisons with critiques": {"train": 8, "held out": 2},
            "different prompts": {"train": 8, "held out": 2},
        }
        assert (found.problem, found.leakage.found) == ("", False)
        assert found.commands == ["rrm-lm reward", "rrm-lm sft --sft_on chosen", "rrm-lm policy"]

    def test_labels_of_ratings(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a?", "response": str(n), "label": n < 2} for n in range(5)]
        found = inspected(tmp_path, rows, eval_fraction=0)
        assert found.counts["train"]["ratings"] == {"mine / good": 2, "mine / bad": 3}
        assert found.read.derived_comparisons == 6

    def test_prompts_alone(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"where is number {n}?", "id": n} for n in range(10)]
        found = inspected(tmp_path, rows)
        assert found.counts["train"] == {"prompts": {"mine": 9}} and found.commands == ["rrm-lm policy"]
        assert found.rows[0].responses == {}
        assert (found.read.files[0].format, found.read.files[0].unread) == ("prompts", ["'id'"])

    def test_demonstrations(self, tmp_path: Path) -> None:
        found = inspected(tmp_path, [{"prompt": str(n), "completion": "yes"} for n in range(3)])
        assert found.commands == ["rrm-lm sft", "rrm-lm policy"]


class TestRepeats:
    def test_rows_and_contradictions(self) -> None:
        swapped = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
        found = inspect_feedback(feedback_of_rows([PAIR, PAIR, swapped, *pairs(2)]), Feedback())
        assert (found.repeated, found.contradictory) == (1, 3)
        assert found.repeats() == "1 repeat an earlier row; 3 contradict another comparison"
        assert inspect_feedback(feedback_of_rows(pairs(3)), Feedback()).repeats() == ""

    def test_overlap_of_train_and_held_out(self) -> None:
        found = inspect_feedback(feedback_of_rows(pairs(5)), feedback_of_rows(pairs(2)))
        assert found.leakage is not None and found.leakage.prompts_exact.count == 2


class TestProblems:
    def test_bad_rows_are_left_out_of_the_page_and_are_the_problem(self, tmp_path: Path) -> None:
        rows = [*pairs(5), {**PAIR, "chosen": ""}, {**PAIR, "rejected": None}]
        found = inspected(tmp_path, rows)
        assert found.problem.startswith("column 'chosen' is empty") and "row 6" in found.problem
        assert found.problem.endswith("or pass --skip_bad_rows true")
        assert [tally.count for tally in found.read.files[0].dropped.values()] == [1, 1]
        assert found.counts["train"]["comparisons"].total() == 4
        assert inspected(tmp_path, rows, skip_bad_rows=True).problem == ""

    def test_a_file_that_cannot_be_read_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no known feedback format"):
            inspected(tmp_path, [{"a": 1}])
        with pytest.raises(DataError, match="no prompt column"):
            inspected(tmp_path, [{"asked": "where is it now?", "chosen": "here it is", "rejected": "here it was"}])

    def test_too_few_prompts_to_hold_one_out(self, tmp_path: Path) -> None:
        assert "cannot be split" in inspected(tmp_path, [PAIR]).problem
        assert inspected(tmp_path, [PAIR], eval_fraction=0).problem == ""

    def test_a_template_that_leaves_out_words(self, tmp_path: Path, tiny: Path) -> None:
        template = tmp_path / "template.jinja"
        template.write_text("{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
        settings = {"model": str(tiny), "chat_template_path": str(template), "eval_fraction": 0}
        found = inspected(tmp_path, pairs(3, system="be brief"), **settings)
        assert found.problem == "the chat template leaves out system messages: 3 (row 1, 2, 3)"
        assert inspected(tmp_path, pairs(3, system="be brief"), skip_bad_rows=True, **settings).problem == ""
        assert inspected(tmp_path, pairs(3), **settings).problem == ""


class TestTokens:
    def test_lengths_are_those_of_the_lines_and_each_conversation_counts_once(self) -> None:
        chat = tiny_chat(max_length=40)
        records = [comparison(row=1), comparison(rejected="the answer is yes, I think", row=2)]
        found = count_tokens(chat, records)
        lines = [
            chat.uncut.encode(records[0].prompt, [text]).lines[0][0]
            for text in (records[0].chosen, records[0].rejected, records[1].rejected)
        ]
        sizes = sorted(len(line.ids) - line.response_start for line in lines)
        assert (found.measured, found.of) == (3, 3)
        assert found.lengths["prompt"] == (lines[0].response_start,) * 3
        assert found.lengths["response"] == (sizes[1], sizes[2], sizes[2])
        assert found.cut == sum(len(line.ids) > 40 for line in lines)

    def test_a_large_set_is_sampled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rrm_lm.api.data.inspection.SAMPLE", 5)
        records = [comparison(f"where is number {n}?", row=n) for n in range(1, 9)]
        found = count_tokens(tiny_chat(max_length=10), records)
        assert (found.measured, found.of, found.cut) == (5, 16, 5)
        assert found.limit() == (
            "5 of a sample of 5 conversations are longer than 10 tokens (max_length) and will be cut"
        )
        assert found == count_tokens(tiny_chat(max_length=10), records)

    def test_prompts_have_no_response(self) -> None:
        chat = tiny_chat()
        found = count_tokens(chat, [comparison()], only_prompts=True)
        assert found.lengths == {"prompt": (len(chat.prompt_ids(comparison().prompt)),) * 3}

    def test_the_limit_is_not_above_the_models_positions(self, tmp_path: Path, tiny: Path) -> None:
        assert inspected(tmp_path, pairs(3), model=str(tiny)).tokens.max_length == 512
        assert inspected(tmp_path, pairs(3), model=str(tiny), max_length=100).tokens.max_length == 100


class TestRows:
    def test_a_comparison_with_a_critique_as_the_model_sees_it(self) -> None:
        row = show_row(tiny_chat(), comparison(chosen_critiques=("clear", "short"), row=7))
        assert row.origin == "tiny.jsonl, row 7"
        assert row.prompt == "<|im_start|>user\nwhat is the moon made of?<|im_end|>\n<|im_start|>assistant\n"
        assert row.responses == {
            "chosen": "the answer is yes<|im_end|>▲\n<|im_start|>user\n⟦clear<|im_end|>⟧",
            "rejected": "no i do not know<|im_end|>▲",
        }

    @pytest.mark.parametrize(
        ("record", "responses"),
        [
            (critique("a?", "yes", "short"), {"critiqued": "yes<|im_end|>▲\n<|im_start|>user\n⟦short<|im_end|>⟧"}),
            (rating("a?", "yes", 0.25), {"rated 0.25": "yes<|im_end|>▲"}),
            (Demonstration(prompt=prompt_of("a?"), response="yes", origin=origin()), {"imitated": "yes<|im_end|>"}),
            (
                Correction(prompt=prompt_of("a?"), response="yes", corrected="no", origin=origin()),
                {"imitated": "no<|im_end|>"},
            ),
        ],
    )
    def test_other_records(self, record: Any, responses: dict[str, str]) -> None:
        assert show_row(tiny_chat(), record).responses == responses

    def test_a_cut_row_says_so(self) -> None:
        row = show_row(tiny_chat(max_length=16), comparison("where is it? " * 9))
        assert row.origin.endswith("(cut to max_length)") and len(row.prompt) < 60

    def test_without_a_model_rows_are_shown_as_they_were_read(self) -> None:
        system = (Message("system", "be brief"), Message("user", "a?"))
        row = show_row(None, comparison(system, "yes", "no"))
        assert (row.prompt, row.responses) == ("system: be brief\nuser: a?", {"chosen": "yes", "rejected": "no"})

    def test_rows_are_spread_over_the_file(self, tmp_path: Path) -> None:
        found = inspected(tmp_path, pairs(9), eval_fraction=0)
        assert [row.origin.rpartition(" ")[2] for row in found.rows] == ["1", "5", "9"]
        assert len(inspected(tmp_path, pairs(2), eval_fraction=0).rows) == 2
        assert inspected(tmp_path, pairs(2), rows=0).rows == ()


def test_from_python(tmp_path: Path, tiny: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    found = rrm_lm.inspect(file, str(tiny), max_length=64)
    assert found.problem == "" and found.tokens is not None and found.tokens.max_length == 64
    in_memory = rrm_lm.inspect(pair_rows(20), str(tiny), max_length=64)
    assert in_memory.tokens == found.tokens and in_memory.read.files[0].file == "the rows"
    assert json.loads(json.dumps(found.to_dict()))["counts"]["train"]["comparisons"] == {"pairs": 18}


def test_the_short_form_for_the_log_of_a_run() -> None:
    records = feedback_of_rows([PAIR, PAIR], name="mine")
    assert inspect_feedback(records, Feedback(), tiny_chat(max_length=64)).lines() == [
        "composition: comparisons: 2",
        "repeats: 1 repeat an earlier row",
        "tokens (median/95%/longest): prompt 15/15/15; response 2/5/5; "
        "none of 2 conversations is longer than 64 tokens (max_length)",
    ]


def test_rows_in_memory_take_columns_and_a_split() -> None:
    renamed = [{"question": one["prompt"], "better": one["chosen"], "worse": one["rejected"]} for one in pairs(12)]
    columns = ["question=prompt", "better=chosen", "worse=rejected"]
    found = rrm_lm.inspect({"part": renamed}, columns=columns, dataset_train_split="part", eval_fraction=0)
    assert found.problem == "" and found.counts["train"]["comparisons"].total() == 12
