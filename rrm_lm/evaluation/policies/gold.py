"""Rewards as plain functions of prompts and responses: the gold reward of a comparison, and what models give.

A function takes prompts and responses, one of each for every sample, and returns as many numbers: the same form as a
reward function that a policy is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.preferences.scoring import Scorer, score_responses
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.simulated.plain_user import WEIGHTS, Judgement, PlainUser
from rrm_lm.training.reward_sources import load_function

RewardFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

_FORM = "def gold(prompts: list[Prompt], responses: list[str]) -> list[float]"


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold reward, called like any `RewardFunction`, and what it is made of.

    Attributes:
        reward: The reward.
        parts: By name, rewards that it sums up; empty where it has none.
    """

    reward: RewardFunction
    parts: Mapping[str, RewardFunction]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return self.reward(prompts, responses)


def load_gold(name: str, limits: ReadLimits | None = None) -> Gold:
    """The gold reward that a name stands for.

    Args:
        name: A file of requests as `data/assistant/requests.jsonl`, whose simulated user judges (see
            `rrm_lm/simulated/plain_user.py`; NaN for a prompt that the user did not ask), `module:function` or
            `path/to/file.py:function`. A function may have an attribute `parts`: functions of the same form, by name.
        limits: How much a file of requests may hold; None for the defaults.

    Raises:
        ConfigError: Neither a file nor a function, or one that cannot be loaded.
        DataError: A file that holds no requests.
    """
    if Path(name).expanduser().is_file():
        return _plain_user(PlainUser.from_file(Path(name).expanduser(), limits))
    if ":" not in name:
        raise ConfigError(
            f"There is no gold reward {name!r}",
            where="gold",
            expected="a file of requests such as data/assistant/requests.jsonl, module:function or file.py:function",
        )
    function = load_function(name)
    parts = {part: checked(one, f"{name}, part {part}") for part, one in getattr(function, "parts", {}).items()}
    return Gold(checked(function, name), parts)


def checked(function: Any, name: str) -> RewardFunction:
    """The same function, whose faults say what it was given.

    Raises (when called):
        DataError: It raised, returned another number of rewards than responses, or something that is no number.
    """

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        try:
            values = [float(value) for value in function(list(prompts), list(responses))]
        except Exception as error:  # whatever people's code raises, the texts belong beside it
            raise DataError(
                f"The reward function failed ({type(error).__name__}: {error})",
                where=f"{name}, at one of {len(responses)} responses, the first: {_quoted(responses)}",
                expected=_FORM,
            ) from error
        if len(values) != len(responses):
            raise DataError(
                f"The reward function returned {len(values)} rewards for {len(responses)} responses",
                where=f"{name}, the first response: {_quoted(responses)}",
                expected="one number for each response, in the order given; NaN where there is none",
            )
        return values

    return rewards


def rewards_by(scorer: Scorer) -> RewardFunction:
    """A reward model as a function; NaN for a response without tokens. Equal responses to a prompt are scored once."""

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        groups: dict[Prompt, dict[str, None]] = {}
        for prompt, response in zip(prompts, responses, strict=True):
            groups.setdefault(prompt, {})[response] = None
        found = score_responses(
            scorer, {p: list(texts) for p, texts in groups.items()}, across_processes=False, progress=False
        )
        return [found[prompt][response] for prompt, response in zip(prompts, responses, strict=True)]

    return rewards


def _plain_user(user: PlainUser) -> Gold:
    def by(value: Callable[[Judgement], float]) -> RewardFunction:
        def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
            return [_judged(user, value, *pair) for pair in zip(prompts, responses, strict=True)]

        return rewards

    parts = {part: by(lambda judgement, part=part: judgement.parts[part]) for part in WEIGHTS}
    return Gold(by(lambda judgement: judgement.gold), parts)


def _judged(user: PlainUser, value: Callable[[Judgement], float], prompt: Prompt, response: str) -> float:
    try:
        return value(user.judge(prompt, response))
    except DataError:  # a request that this user did not make
        return math.nan


def _quoted(responses: Sequence[str]) -> str:
    return repr(responses[0][:200]) if responses else "none"
