"""Rewards as functions of prompts and responses: the gold reward of a comparison, and rewards of models.

A function takes one prompt and one response per sample and returns one number each, like a reward function for
training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, score_responses
from rrm_lm.feedback.records import Prompt

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

_FORM = "def gold(prompts: list[Prompt], responses: list[str]) -> list[float]"


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold reward, called like any `RewardFunction`, and by name the parts that it sums, if any."""

    reward: RewardFunction
    parts: Mapping[str, RewardFunction]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return self.reward(prompts, responses)


def checked(function: Any, name: str) -> RewardFunction:
    """Wrap a function so that its errors quote the prompt and response.

    Raises (when called):
        DataError: The function raised an error, or returned the wrong number of rewards or a value that is not a
            number.
    """

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        try:
            values = [float(value) for value in function(list(prompts), list(responses))]
        except Exception as error:  # user code may raise anything, and the message must quote the text
            raise DataError(
                f"The reward function failed ({type(error).__name__}: {error})",
                where=f"{name}, at one of {len(responses)} responses, the first: {_quoted(responses)}",
                expected=_FORM,
            ) from error
        if len(values) != len(responses):
            raise DataError(
                f"The reward function returned {len(values)} rewards for {len(responses)} responses",
                where=f"{name}, the first response: {_quoted(responses)}",
                expected="one number for each response, in the order given; NaN for a response without a reward",
            )
        return values

    return rewards


def rewards_by(scorer: ResponseScorer) -> RewardFunction:
    """A reward model as a function. NaN for a response without tokens. Equal responses to a prompt are scored once."""

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        groups: dict[Prompt, dict[str, None]] = {}
        for prompt, response in zip(prompts, responses, strict=True):
            groups.setdefault(prompt, {})[response] = None
        distinct = {prompt: list(texts) for prompt, texts in groups.items()}
        found = score_responses(scorer, distinct, across_processes=False, progress=False)
        return [found[prompt][response] for prompt, response in zip(prompts, responses, strict=True)]

    return rewards


def _quoted(responses: Sequence[str]) -> str:
    return repr(responses[0][:200]) if responses else "none"
