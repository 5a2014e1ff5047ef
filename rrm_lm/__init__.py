"""Language-feedback reward modeling: reward models and policies from comparisons, critiques and ratings.

    import rrm_lm

    reward = rrm_lm.RewardModel.from_pretrained("outputs/mine")
    reward.score("How long does rice keep?", ["Four days.", "Rice is a grain."])  # -> (2,) floats
    rrm_lm.evaluate(reward, "pairs.jsonl")  # -> the numbers of results.json
    rrm_lm.Policy.from_pretrained("outputs/policy").respond("Hello!")  # -> str

Importing this package imports nothing heavy: what `__all__` lists is loaded at its first use. The commands
(`rrm-lm --help`) do the same from the shell.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rrm_lm.api.data.inspection import inspect
    from rrm_lm.api.policy.trainer import PPOConfig, PPOTrainer
    from rrm_lm.api.policy_model import Policy
    from rrm_lm.api.reward.config import RewardConfig
    from rrm_lm.api.reward.trainer import RewardTrainer
    from rrm_lm.api.reward_function import reward_function
    from rrm_lm.api.reward_model import RewardModel, evaluate

__version__ = "0.1.0"
__all__ = [
    "PPOConfig",
    "PPOTrainer",
    "Policy",
    "RewardConfig",
    "RewardModel",
    "RewardTrainer",
    "__version__",
    "evaluate",
    "inspect",
    "reward_function",
]

_HOMES = {
    "inspect": "rrm_lm.api.data.inspection",
    "PPOConfig": "rrm_lm.api.policy.trainer",
    "PPOTrainer": "rrm_lm.api.policy.trainer",
    "Policy": "rrm_lm.api.policy_model",
    "RewardConfig": "rrm_lm.api.reward.config",
    "RewardTrainer": "rrm_lm.api.reward.trainer",
    "RewardModel": "rrm_lm.api.reward_model",
    "evaluate": "rrm_lm.api.reward_model",
    "reward_function": "rrm_lm.api.reward_function",
}

# Nothing is sent anywhere unless the user asks: Hugging Face's libraries report usage by default and read this
# variable when they are first imported. Setting it to 0 before the import turns the reports on again.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
