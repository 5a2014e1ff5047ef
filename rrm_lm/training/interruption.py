"""Stop a training run early, so that it can be resumed without any difference in the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from rrm_lm.errors import Interrupted
from rrm_lm.models.sharding import max_over_processes


class StopCallback(TrainerCallback):
    """Ends training after the step in which any process received a signal, once that step's checkpoint is complete. All
    processes stop after the same step. `asked` returns the signal that this process received, or 0. `every` is the
    number of steps per update: training can only be resumed at a multiple of it.
    """

    def __init__(self, asked: Callable[[], int], every: int = 1) -> None:
        self._asked, self._every = asked, every
        self._signum = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every:
            return
        self._signum = max_over_processes(self._asked(), args.device)
        if self._signum:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Exit the training loop after a requested stop. Raises Interrupted if a process received a signal."""
        if self._signum:
            raise Interrupted(self._signum, f"{args.output_dir}/checkpoint-{state.global_step}")
