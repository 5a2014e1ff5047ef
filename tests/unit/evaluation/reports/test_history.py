"""A trainer's log as updates."""

from __future__ import annotations

import math

from rrm_lm.evaluation.reports.history import update_of, updates_of

LOG = [
    {"held_out/kl": 0.0, "step": 0},
    {
        **{"objective/scores": -0.5, "objective/kl": 0.0, "val/finished": 0.25, "val/response_length": 20.5, "step": 1},
        **{"loss/policy_avg": 0.1, "reward/short": -1.0, "reward/polite": 0.5, "time/roll_out": 3.0, "time/update": 4},
    },
    {"held_out/kl": 1.0, "step": 1},
    {"objective/scores": 7.0, "objective/kl": 120.0, "step": 1},
]


def test_updates_of_a_log() -> None:
    first, runaway = updates_of(LOG)
    assert (first.number, first.made, first.get("reward"), first.get("length")) == (1, True, -0.5, 20.5)
    assert first.rewards == {"short": -1.0, "polite": 0.5} and first.seconds == {"roll_out": 3.0, "update": 4.0}
    assert math.isnan(first.get("entropy"))
    assert (runaway.number, runaway.made, runaway.get("kl")) == (2, False, 120.0)  # what stopped the second


def test_steps_of_another_trainer() -> None:
    """TRL's RLOO counts optimizer steps, several an update, and calls its loss by its own name."""
    found = updates_of([{"objective/scores": 1.0, "loss": 0.5, "step": step} for step in (4, 8)], 4)
    assert [(update.number, update.made) for update in found] == [(1, True), (2, True)]


def test_other_entries_are_not_updates() -> None:
    assert update_of({"train_runtime": 3.0}, 4) is None
