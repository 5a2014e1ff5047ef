"""A policy's training as a list of updates, from the log of Hugging Face's trainers (`trainer_state.json`).

PPO and RLOO log under different names. Here each measure has one name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MADE = ("loss/policy_avg", "loss")  # logged for every completed update
_MEASURES = {
    "objective/scores": "reward",
    "objective/kl": "kl",
    "val/finished": "finished",
    "val/response_length": "length",
    "policy/entropy_avg": "entropy",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clipped",
    "objective/kl_coef": "kl_coef",
    "lr": "learning_rate",
}


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the policy, and its episodes."""

    number: int  # From 1. An update that was skipped because its episodes stopped the training has a number too.
    made: bool  # whether the policy was trained on the episodes
    # By name: reward (mean per episode), kl (nats per episode from the reference), finished (share that ended with an
    # end token), length (tokens), entropy (nats per token), policy_loss, value_loss, clipped (share of tokens),
    # kl_coef, learning_rate. Some may be missing.
    measures: Mapping[str, float]
    rewards: Mapping[str, float] = field(default_factory=dict)  # mean of each reward, by name
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase

    def get(self, name: str) -> float:
        return self.measures.get(name, math.nan)


def update_of(logs: Mapping[str, Any], step: int) -> Update | None:
    """Convert a log entry to an update; None for other entries. `step` is the number of updates completed by then."""
    if "objective/scores" not in logs:
        return None
    made = any(name in logs for name in _MADE)
    numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
    measures = {_MEASURES[name]: value for name, value in numbers.items() if name in _MEASURES}
    rewards, seconds = (
        {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
        for prefix in ("reward/", "time/")
    )
    return Update(step if made else step + 1, made, measures, rewards, seconds)


def updates_of(log_history: Sequence[Mapping[str, Any]], steps_per_update: int = 1) -> list[Update]:
    found = (update_of(entry, int(entry.get("step", 0)) // steps_per_update) for entry in log_history)
    return [update for update in found if update is not None]
