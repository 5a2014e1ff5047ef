"""Ending a training run in the middle so that it can go on as if it had never ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from rrm_lm.errors import Interrupted


class StopCallback(TrainerCallback):
    """Ends training after the step in which a process was asked to stop, once the checkpoint of that step is whole.

    All processes end after the same step, whichever of them was asked.

    Args:
        asked: Gives the signal that asked this process to stop, 0 while none has.
        every: Steps that belong together, and after which alone training can be resumed.
    """

    def __init__(self, asked: Callable[[], int], every: int = 1) -> None:
        self._asked, self._every = asked, every
        self._signum = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every:
            return
        self._signum = self._of_any_process(args.device)
        if self._signum:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the training loop.

        Raises:
            Interrupted: Somebody asked for it.
        """
        if self._signum:
            raise Interrupted(self._signum, f"{args.output_dir}/checkpoint-{state.global_step}")

    def _of_any_process(self, device: torch.device) -> int:
        signum = self._asked()
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return signum
        found = torch.tensor([signum], device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)
