"""Judges that compare two responses side by side.

Judges have a position bias (Wang et al. 2023, arXiv 2305.17926), so each pair is shown in both orders, and counts only
if both give a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from rrm_lm.evaluation.policies.results import PairVerdict
from rrm_lm.evaluation.preferences.judge import answer_logits
from rrm_lm.feedback.asking.judge_questions import LETTER_QUESTION, fill
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat

PairQuestion = tuple[Prompt, str, str]  # a prompt, the response shown first, the response shown second


class PairJudge(Protocol):
    """Decides which of two responses is better."""

    @property
    def name(self) -> str: ...

    def judge(self, questions: Sequence[PairQuestion]) -> list[float | None]:
        """For each question, the probability (0 to 1) that the first response is better; None for an abstention."""
        ...


class LanguageModelJudge:
    """A causal language model: its probability of A against B as the first token of the answer.

    It abstains if a question does not fit the context (at most `chat.max_length` tokens), or if the most likely answer
    is neither letter. Verdicts do not depend on `micro_batch_tokens`, the maximum of padded tokens at once. `question`
    is a template for `rrm_lm.feedback.asking.judge_questions.fill`.
    """

    def __init__(
        self,
        backbone: Backbone,
        chat: ChatFormat,
        name: str,
        *,
        adapter: str | None = None,
        micro_batch_tokens: int = 4096,
        question: str = LETTER_QUESTION,
    ) -> None:
        check_logits(backbone)
        self.backbone, self.adapter, self.name = backbone, adapter, name
        self.chat = ChatFormat(chat.tokenizer)  # never truncates a question
        self.longest = chat.max_length or context_length(backbone.config)
        self.micro_batch_tokens, self.question = micro_batch_tokens, question
        # The possible first tokens of an answer: a letter with and without a leading space.
        tokens = [[chat.tokenizer(text, add_special_tokens=False).input_ids[-1] for text in (a, f" {a}")] for a in "AB"]
        self.letters = [sorted(set(ids)) for ids in tokens]

    def judge(self, questions: Sequence[PairQuestion]) -> list[float | None]:
        lines = [tuple(self.chat.prompt_ids(self._ask(*question))) for question in questions]
        fitting = [i for i, line in enumerate(lines) if self._is_short(line)]
        verdicts: list[float | None] = [None] * len(questions)
        self.backbone.eval()
        asked = [[lines[i]] for i in fitting]
        for group, logits in answer_logits(self.backbone, self.adapter, asked, self.micro_batch_tokens):
            first, second = (logits[:, ids].logsumexp(-1) for ids in self.letters)
            chances = torch.sigmoid(first - second).tolist()
            for i, token, chance in zip(group, logits.argmax(-1).tolist(), chances, strict=True):
                if token in self.letters[0] or token in self.letters[1]:
                    verdicts[fitting[i]] = chance
        return verdicts

    def fits(self, question: PairQuestion) -> bool:
        return self._is_short(self.chat.prompt_ids(self._ask(*question)))

    def _is_short(self, line: Sequence[int]) -> bool:
        return self.longest is None or len(line) <= self.longest

    def _ask(self, prompt: Prompt, first: str, second: str) -> Prompt:
        return (Message("user", fill(self.question, prompt, first, second)),)


def both_orders(
    judge: PairJudge, prompts: Sequence[Prompt], mine: Sequence[str], theirs: Sequence[str]
) -> list[PairVerdict]:
    """For each prompt, judge a response of a policy and one of the reference in both orders.

    Equal texts tie without asking.
    """
    asked = [i for i, (own, other) in enumerate(zip(mine, theirs, strict=True)) if own != other]
    forwards = [(prompts[i], mine[i], theirs[i]) for i in asked]
    backwards = [(prompts[i], theirs[i], mine[i]) for i in asked]
    answers = judge.judge([*forwards, *backwards])
    verdicts = {i: PairVerdict(i, 0.5, 0.5) for i in range(len(prompts))}
    for place, i in enumerate(asked):
        other = answers[len(asked) + place]
        verdicts[i] = PairVerdict(i, answers[place], None if other is None else 1 - other)
    return list(verdicts.values())
