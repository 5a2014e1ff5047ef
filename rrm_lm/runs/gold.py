"""Load the gold reward that a setting names: a function or a simulated user. Training must not import this."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.policies.gold import CheckedFunction, Gold, RewardFunction
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.simulated.note_users import NoteJudgement, SimulatedUser, load_user
from rrm_lm.simulated.plain_words import Judgement
from rrm_lm.training.reward_functions import PromptRows
from rrm_lm.training.reward_sources import PythonReward, load_function

Judged = Judgement | NoteJudgement


def load_gold(name: str, limits: ReadLimits | None = None, rows: PromptRows | None = None) -> Gold:
    """Load a gold reward by name.

    It is a file of requests, scored by its simulated user (in `rrm_lm/simulated`; NaN for a prompt that is not
    the user's; `limits` says how much the file may hold), `module:function` or `path/to/file.py:function`. A function
    gets the row of each prompt from `rows`, and may have the attributes `parts`, functions of the same form by
    name, and `weights`, numbers by the same names.
    Raises ConfigError: the name is neither a file nor a function, or it cannot be loaded; DataError: no requests.
    """
    if (user := load_user(name, limits)) is not None:
        return _by_user(user)
    if ":" not in name:
        expected = "a file of requests such as data/assistant/requests.jsonl, module:function or file.py:function"
        raise ConfigError(f"There is no gold reward {name!r}", where="gold", expected=expected)
    function = load_function(name)
    parts = {
        part: CheckedFunction(PythonReward(one, f"{name}, part {part}", rows))
        for part, one in getattr(function, "parts", {}).items()
    }
    return Gold(CheckedFunction(PythonReward(function, name, rows)), parts, getattr(function, "weights", {}))


def _by_user(user: SimulatedUser) -> Gold:
    def by(read: Callable[[Judged], float]) -> RewardFunction:
        def rewards(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
            return [one(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

        def one(prompt: Prompt, response: str) -> float:
            try:
                return read(user.judge(prompt, response))
            except DataError:  # not one of this user's requests
                return math.nan

        return rewards

    parts = {part: by(lambda judgement, part=part: judgement.parts[part]) for part in user.parts}
    return Gold(by(lambda judgement: judgement.gold), parts, user.weights)
