"""Convert PPO settings to TRL's RLOO settings: some are translated, some have no effect, some are refused."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from trl.trainer.rloo_config import RLOOConfig as TRLConfig

from rrm_lm.errors import ConfigError
from rrm_lm.training.arguments import TOKENS, TrainerArguments, set_sizes
from rrm_lm.training.ppo.config import PPOConfig

logger = logging.getLogger(__name__)

# Settings that would change the objective: the only value that RLOO supports, and what to do.
REFUSED: dict[str, tuple[Any, str]] = {
    "kl_control": ("fixed", "leave out kl_control and set kl_coef, which is constant"),
    "kl_estimator": ("k1", "leave it out; with --algorithm ppo there is a choice"),
    "rollouts": ("own", "leave it out; with --algorithm ppo, a server can sample"),
    "normalize_rewards": (False, "leave it out; the mean of a prompt's other samples is subtracted from every reward"),
}
# Settings of the value function, of advantages per token, and of how our own PPO computes.
IDLE = frozenset(
    {"vf_coef", "cliprange_value", "value_function", "max_value_loss", "gamma", "lam", "whiten_rewards", "kl_target"}
    | {"kl_gain", "share_prefixes", "trl_compatible", "eval_strategy", "eval_on_start"}
    | {"load_best_model_at_end", "rollout_url", "rollout_key_env", "max_rollout_mismatch", "rollout_importance_cap"}
)


@dataclass
class RLOOConfig(TrainerArguments, TRLConfig):
    """TRL's settings, with the defaults of this package's trainers."""

    router_aux_loss_coef: float = 0.0  # expert routers are frozen


def rloo_config(
    ppo: PPOConfig,
    *,
    processes: int,
    prompts: int,
    longest: int,
    logits: int,
    weights: Sequence[float],
    **more: Any,
) -> RLOOConfig:
    """Make TRL's settings for the same run with RLOO.

    An update has the same episodes, epochs (``num_ppo_epochs``) and steps (``num_mini_batches``) as with PPO. Numbers
    of updates (``max_steps``, ``save_steps``, ``warmup_steps``) become numbers of optimizer steps, because TRL counts
    those. Every update is logged. The number of episodes per forward pass follows from ``micro_batch_tokens`` and
    ``logits`` and does not change the gradient.

    Args:
        ppo: The PPO settings. :meth:`PPOConfig.count_batches` is called on them.
        longest: Tokens of the longest prompt.
        logits: Response tokens whose logits fit into memory at once. TRL keeps the logits of all responses of a forward
            pass, which PPO does not.
        more: Settings that only RLOOConfig has, such as ``normalize_advantages``.

    Raises:
        ConfigError: Fewer than two samples per prompt, sizes that do not divide evenly, or a setting that RLOO lacks.
    """
    _refuse(ppo)
    _warn_of_idle(ppo)
    set_sizes(ppo, TOKENS)
    ppo.count_batches(processes, prompts)
    assert ppo.local_mini_batch_size is not None and ppo.num_total_batches is not None
    most = min(ppo.micro_batch_tokens // (longest + ppo.response_length), logits // ppo.response_length)
    at_once = _divisor(ppo.local_mini_batch_size, most)
    accumulated = ppo.local_mini_batch_size // at_once
    steps = ppo.num_ppo_epochs * ppo.num_mini_batches  # per update
    known = {item.name for item in fields(RLOOConfig)}
    shared = {item.name: getattr(ppo, item.name) for item in fields(ppo) if item.name in known}
    settings = shared | {
        "num_generations": ppo.samples_per_prompt,
        "max_completion_length": ppo.response_length,
        "beta": ppo.kl_coef,
        "epsilon": ppo.cliprange,
        "num_iterations": ppo.num_ppo_epochs,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": accumulated,
        "steps_per_generation": accumulated * ppo.num_mini_batches,
        "max_steps": ppo.num_total_batches * steps,
        "save_steps": _in_steps(ppo.save_steps, steps, ppo.num_total_batches),
        "warmup_steps": _in_steps(ppo.warmup_steps, steps, None),
        "logging_steps": steps,
        "logging_strategy": "steps",
        "reward_weights": list(weights),
        "reward_clip_range": None if ppo.reward_clip is None else (-ppo.reward_clip, ppo.reward_clip),
        "disable_dropout": True,  # as in PPO: train the policy on the distribution it was sampled from
        "eval_strategy": "no",
        "eval_on_start": False,
        "load_best_model_at_end": False,
        "gradient_checkpointing": bool(ppo.gradient_checkpointing),
    }
    try:
        return RLOOConfig(**{**settings, **more})
    except ValueError as error:
        raise ConfigError(
            f"RLOO cannot run with these settings: {' '.join(str(error).split())}",
            where="the settings of TRL's RLOOTrainer",
            remedy="leave the setting out, or train with --algorithm ppo",
        ) from error


def _refuse(ppo: PPOConfig) -> None:
    if ppo.samples_per_prompt < 2:
        raise ConfigError(
            f"samples_per_prompt is {ppo.samples_per_prompt}",
            where="samples_per_prompt",
            expected="at least 2 for RLOO: a sample is compared with the others to the same prompt",
            remedy="pass --samples_per_prompt 4, or train with --algorithm ppo",
        )
    for name, (kept, remedy) in REFUSED.items():
        if getattr(ppo, name) != kept:
            what = f"{name} is {getattr(ppo, name)}, which RLOO does not have"
            raise ConfigError(what, where=name, expected=str(kept), remedy=remedy)
    if ppo.max_kl is not None and ppo.kl_coef == 0:
        logger.warning("max_kl has no effect: with kl_coef 0, RLOO does not run the reference")


def _warn_of_idle(ppo: PPOConfig) -> None:
    """Warn once about all settings that differ from their defaults but have no effect here."""
    idle = []
    for item in fields(ppo):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        value = getattr(ppo, item.name)
        value = getattr(value, "value", value)  # Hugging Face's enums
        if item.name in IDLE and value != getattr(default, "value", default):
            idle.append(f"{item.name} {value}")
    if idle:
        logger.warning("settings that have no effect with RLOO: %s", ", ".join(idle))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`, or 1."""
    return max((d for d in range(1, number + 1) if number % d == 0 and d <= most), default=1)


def _in_steps(value: float, steps: int, updates: int | None) -> float:
    """Convert updates to optimizer steps. A share of the run stays one unless the number of `updates` is given."""
    if value >= 1:
        return int(value) * steps
    return value if updates is None or value == 0 else max(1, math.ceil(updates * value)) * steps
