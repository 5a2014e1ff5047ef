"""Judges of pairs: always in both orders, and silent where they have nothing to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rrm_lm.evaluation.policies.comparison import judge_pairs
from rrm_lm.evaluation.policies.pair_judges import LanguageModelJudge, PairQuestion, both_orders
from rrm_lm.feedback.asking.judge_questions import LETTER_QUESTION, fill
from rrm_lm.feedback.records import prompt_id
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.chat import ChatFormat
from tests.tiny import tiny_chat, tiny_model, tiny_tokenizer
from tests.unit.evaluation.policy_cases import asked

torch.set_num_threads(1)

PROMPTS = [asked("what is blue?"), asked("who lives in the sea?"), asked("what is the moon made of?")]
MINE, THEIRS = ["the sea", "no one", "the moon"], ["the sea is blue", "no one", "yes and no and yes"]


class Function:
    """A judge by a function of the question; remembers what it was asked."""

    name = "function"

    def __init__(self, function) -> None:
        self.function, self.asked = function, []

    def judge(self, questions: Sequence[PairQuestion]) -> list[float | None]:
        self.asked += questions
        return [self.function(*question) for question in questions]


def longer(_prompt, first: str, second: str) -> float:
    return float(len(first) > len(second))


def test_every_pair_is_shown_both_ways() -> None:
    judge = Function(longer)
    verdicts = both_orders(judge, PROMPTS, MINE, THEIRS)
    assert judge.asked == [
        (PROMPTS[0], MINE[0], THEIRS[0]),
        (PROMPTS[2], MINE[2], THEIRS[2]),
        (PROMPTS[0], THEIRS[0], MINE[0]),
        (PROMPTS[2], THEIRS[2], MINE[2]),
    ]
    # Longer is better: the policy loses in both orders. Equal texts are not asked about.
    assert [(v.prompt, v.shown_first, v.shown_second) for v in verdicts] == [(0, 0, 0), (1, 0.5, 0.5), (2, 0, 0)]


def test_a_judge_who_prefers_a_place_prefers_nobody() -> None:
    verdicts = both_orders(Function(lambda *_: 0.9), PROMPTS, MINE, THEIRS)
    found = judge_pairs(verdicts, [prompt_id(prompt) for prompt in PROMPTS])
    assert found.win_rate is not None and found.first_shown is not None
    assert found.win_rate.value == 0.5 and found.inconsistent == 2
    assert found.first_shown.value == pytest.approx((1 + 1 + 0.5) / 3)


def test_an_abstention_in_one_order_leaves_the_pair_out() -> None:
    judge = Function(lambda _p, first, second: None if first == "the sea" else longer(_p, first, second))
    verdicts = both_orders(judge, PROMPTS, MINE, THEIRS)
    assert (verdicts[0].shown_first, verdicts[0].shown_second, verdicts[0].decisions) == (None, 0.0, None)


# ---- a language model ----


def tiny_judge(favourite: str | None = None, **more: Any) -> LanguageModelJudge:
    """A judge on a tiny model whose head likes one letter above every other token, or as it was drawn."""
    model = tiny_model()
    if favourite is not None:
        letter = tiny_tokenizer()(favourite, add_special_tokens=False).input_ids[-1]
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.bias[letter] = 3.0
        model.set_output_embeddings(head)
    return LanguageModelJudge(Backbone(model, pad_id=0), tiny_chat(), "tiny", **more)


QUESTIONS: list[PairQuestion] = [(p, a, b) for p, a, b in zip(PROMPTS, MINE, THEIRS, strict=True)]


@pytest.mark.parametrize(("favourite", "first"), [("A", True), ("B", False)])
def test_the_letter_it_prefers_is_the_place_it_prefers(favourite: str, first: bool) -> None:
    verdicts = tiny_judge(favourite).judge(QUESTIONS)
    assert all(verdict is not None and (verdict > 0.5) is first for verdict in verdicts)


def test_an_answer_that_is_no_letter_is_an_abstention() -> None:
    assert tiny_judge("the").judge(QUESTIONS) == [None, None, None]


def test_a_question_that_does_not_fit_is_an_abstention() -> None:
    judge = tiny_judge("A")
    lengths = [len(judge.chat.prompt_ids(judge._ask(*question))) for question in QUESTIONS]
    short = min(lengths)
    cut = LanguageModelJudge(judge.backbone, ChatFormat(judge.chat.tokenizer, short), "tiny")
    assert [verdict is None for verdict in cut.judge(QUESTIONS)] == [length > short for length in lengths]
    assert max(lengths) > short


@pytest.mark.parametrize("tokens", [1, 100_000])
def test_verdicts_depend_on_no_batch(tokens: int) -> None:
    judge = tiny_judge(micro_batch_tokens=tokens)
    # Whatever letters these weights like, the odds must be those of each question alone.
    judge.letters = [list(range(0, 200)), list(range(200, 416))]
    alone = [judge.judge([question])[0] for question in QUESTIONS]
    together = judge.judge(QUESTIONS)
    assert together == pytest.approx(alone, abs=1e-5) and len({round(v or 0, 4) for v in alone}) == 3


def test_what_it_is_asked() -> None:
    (message,) = tiny_judge()._ask(PROMPTS[0], "first {reply}", "second reply")
    assert message.content == fill(LETTER_QUESTION, PROMPTS[0], "first {reply}", "second reply")
    assert message.content.endswith("Answer with one letter: A or B.")
