"""The course of a policy's training, from the log that Hugging Face's trainers keep (`trainer_state.json`).

PPO and RLOO log under other names; here they have one, whatever the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MADE = ("loss/policy_avg", "loss")  # in the log of an update, and not in what is logged of one that was not made
# Our names of what is logged of an update, by the trainers'.
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
_REWARD, _TIME = "reward/", "time/"


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the policy, and the episodes that it learned from.

    Attributes:
        number: Which, from 1. What was not made any more, because its episodes stopped the training, has the next one.
        made: Whether the policy learned from them.
        measures: By name: reward (mean of an episode), kl (nats of an episode to the reference), finished (share that
            ended by itself), length (tokens), entropy (nats a token), policy_loss, value_loss, clipped (share of
            tokens), kl_coef, learning_rate. A trainer need not log all.
        rewards: Mean of each reward, by its name.
        seconds: By what they were spent on.
    """

    number: int
    made: bool
    measures: Mapping[str, float]
    rewards: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def get(self, name: str) -> float:
        """A measure; NaN if it was not logged."""
        return self.measures.get(name, math.nan)


def update_of(logs: Mapping[str, Any], step: int) -> Update | None:
    """What one entry of the log says of an update; None for an entry about something else.

    Args:
        logs: The entry.
        step: How many updates the policy had behind it then.
    """
    if "objective/scores" not in logs:
        return None
    made = any(name in logs for name in _MADE)
    numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
    return Update(
        step if made else step + 1,
        made,
        {_MEASURES[name]: value for name, value in numbers.items() if name in _MEASURES},
        _under(_REWARD, numbers),
        _under(_TIME, numbers),
    )


def _under(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}


def updates_of(log_history: Sequence[Mapping[str, Any]], steps_per_update: int = 1) -> list[Update]:
    """Every update in a trainer's log, in order."""
    found = (update_of(entry, int(entry.get("step", 0)) // steps_per_update) for entry in log_history)
    return [update for update in found if update is not None]


def duration(seconds: float) -> str:
    """About how long, in one or two units: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
