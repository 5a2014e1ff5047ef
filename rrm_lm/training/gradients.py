"""Several backward passes that make one optimizer step, whatever the model is wrapped in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor


def accumulate(accelerator: Any, model: Any, loss: Callable[[], Tensor], last: bool) -> Tensor:
    """Compute a loss and its gradients; processes sum theirs in the last pass of a step only.

    The parts of a step's loss add up to it as they are. (DeepSpeed would divide each by the number of steps that
    Trainer accumulates, and take an optimizer step after each.)

    Args:
        accelerator: Takes the gradients.
        model: What it wrapped.
        loss: Computes the loss, with the model's forward pass.
        last: Whether no other pass of this step follows. Where Trainer accumulates, it keeps gradients back itself.

    Returns:
        The loss, without gradient.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        part = loss()
        ends = last and accelerator.sync_gradients
        accelerator.deepspeed_engine_wrapped.backward(part, sync_gradients=ends, scale_wrt_gas=False)
        return part.detach()
    waits = not last and accelerator.sync_gradients
    with accelerator.no_sync(model) if waits else nullcontext():
        part = loss()
        accelerator.backward(part)
    return part.detach()
