"""Rewards as functions of prompts and responses: the gold reward of a comparison, and rewards of models.

A function takes one prompt and one response per sample and returns one number each, like a reward function for
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, score_responses
from rrm_lm.feedback.records import Prompt
from rrm_lm.training.reward_functions import FORM
from rrm_lm.training.reward_sources import PythonReward

RewardFunction = Callable[..., Sequence[float]]  # of (prompts, responses)


class CheckedFunction:
    """A user's function as a `RewardFunction`, which may also be given the token ids of the responses.

    Its errors quote the first response: a DataError if the function raises an error, or returns the wrong number of
    rewards or a value that is neither a number nor None (NaN: the response has no reward).
    """

    reads_ids = True

    def __init__(self, function: PythonReward) -> None:
        self.function = function

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], *ids: Any) -> list[float]:
        try:
            found = self.function(list(prompts), list(responses), *ids)
            values = [math.nan if value is None else float(value) for value in found]
            if len(values) != len(responses):
                raise ValueError(f"it returned {len(values)} rewards for {len(responses)} responses")
        except Exception as error:  # user code may raise anything, and the message must quote the text
            what = f"The reward function failed ({type(error).__name__}: {error})"
            first = repr(responses[0][:200]) if responses else "none"
            where = f"{self.function.name}, at one of {len(responses)} responses, the first: {first}"
            raise DataError(what, where=where, expected=FORM) from error
        return values


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold reward, called like any `RewardFunction`; by name the parts that it sums, if any, and their weights."""

    reward: RewardFunction
    parts: Mapping[str, RewardFunction] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)  # 1 if missing

    @property
    def reads_ids(self) -> bool:
        """Whether it takes the token ids of the responses as a third argument."""
        return getattr(self.reward, "reads_ids", False)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], *ids: Any) -> Sequence[float]:
        return self.reward(prompts, responses, *ids)

    def deciding(self, prompts: Sequence[Prompt], chosen: Sequence[str], rejected: Sequence[str]) -> list[str]:
        """The part in which each chosen response gains most over the rejected one, weighted; "" if it gains nowhere."""
        leads = [
            self.weights.get(name, 1.0) * np.subtract(part(prompts, chosen), part(prompts, rejected))
            for name, part in self.parts.items()
        ]
        table, names = np.nan_to_num(np.array(leads)), list(self.parts)
        return [names[i] if lead > 0 else "" for i, lead in zip(table.argmax(0), table.max(0), strict=True)]

    def try_on(self, prompts: Sequence[Prompt]) -> None:
        """Call user's functions with made-up responses. Raises ConfigError if a result cannot be used."""
        for function in (self.reward, *self.parts.values()):
            if isinstance(function, CheckedFunction):
                function.function.try_on(prompts)


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
