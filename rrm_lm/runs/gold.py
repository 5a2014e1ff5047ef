"""The gold reward that a setting names: a function, or a simulated user, whose truth only a command may ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.policies.gold import Gold, RewardFunction, checked
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.simulated.judgement import WEIGHTS, Judgement
from rrm_lm.simulated.plain_user import PlainUser
from rrm_lm.training.reward_sources import load_function


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
