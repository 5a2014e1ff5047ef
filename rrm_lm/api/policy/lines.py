"""Terminal output of `rrm-lm policy`: a line per update."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.evaluation.reports.history import Update, update_of

logger = logging.getLogger(__name__)


class UpdateLines(TrainerCallback):
    """Logs one line per update, in place of progress bars and tables of all metrics."""

    def __init__(self, steps_per_update: int = 1) -> None:
        self._steps = steps_per_update
        self._started: float | None = None
        self._begun, self._first = 0.0, 0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the timer of the update, and that of the run at the first update."""
        if state.global_step % self._steps:
            return
        self._begun = time.perf_counter()
        if self._started is None:
            self._started, self._first = self._begun, state.global_step // self._steps

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the line if an update was made."""
        update = update_of(logs or {}, state.global_step // self._steps)
        if update is None or not update.made or self._started is None or not state.is_world_process_zero:
            return
        now, planned = time.perf_counter(), state.max_steps // self._steps
        left = (now - self._started) / max(1, update.number - self._first) * (planned - update.number)
        logger.info("%s", line_of(update, planned, now - self._begun, left))


def line_of(update: Update, of: int, seconds: float, left: float) -> str:
    """Format one update: `update  3 of 40: reward +0.541, KL 1.32, 94% ended, 31.5 tokens, 21.8 s, 13 min left`. `of`
    is the total number of updates, and `left` the estimated seconds until the last one ends.
    """
    reward = f"reward {update.get('reward'):+.3f}"
    if len(update.rewards) > 1:
        reward += " (" + ", ".join(f"{name} {value:+.3f}" for name, value in update.rewards.items()) + ")"
    parts = [
        reward,
        f"KL {update.get('kl'):.3f}",
        f"{100 * update.get('finished'):.0f}% ended",
        f"{update.get('length'):.1f} tokens",
        f"{seconds:.1f} s",
    ]
    if left > 0:
        parts.append(f"{duration(left)} left")
    return f"update {update.number:>{len(str(of))}} of {of}: {', '.join(parts)}"
