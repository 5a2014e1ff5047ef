"""The gold reward that a setting names: a function, or a simulated user, whose truth only a command may read."""

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
    """Load the gold reward of that name.

    Args:
        name: A file of requests like `data/assistant/requests.jsonl`, whose simulated user judges (see
            `rrm_lm/simulated/plain_user.py`; NaN for prompts that are not the user's), `module:function` or
            `path/to/file.py:function`. A function may have an attribute `parts`: functions of the same form, by name.
        limits: Limits on the size of a file of requests; None for the defaults.

    Raises:
        ConfigError: Neither a file nor a function, or a function that cannot be loaded.
        DataError: A file without requests.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _gold_of_user(PlainUser.from_file(path, limits))
    if ":" not in name:
        raise ConfigError(
            f"There is no gold reward {name!r}",
            where="gold",
            expected="a file of requests such as data/assistant/requests.jsonl, module:function or file.py:function",
        )
    function = load_function(name)
    parts = {part: checked(one, f"{name}, part {part}") for part, one in getattr(function, "parts", {}).items()}
    return Gold(checked(function, name), parts)


def _gold_of_user(user: PlainUser) -> Gold:
    def reward_by(read: Callable[[Judgement], float]) -> RewardFunction:
        def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
            return [one(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

        def one(prompt: Prompt, response: str) -> float:
            try:
                return read(user.judge(prompt, response))
            except DataError:  # not a request of this user
                return math.nan

        return rewards

    parts = {part: reward_by(lambda judgement, part=part: judgement.parts[part]) for part in WEIGHTS}
    return Gold(reward_by(lambda judgement: judgement.gold), parts)
