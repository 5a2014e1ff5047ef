"""Coordination of several processes: reductions, global batches, and gradient accumulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils.data import Sampler

from rrm_lm.errors import TrainingError
from rrm_lm.models.sharding import max_over_processes

Total = Callable[[Tensor], Tensor]  # sums a tensor over processes


class Processes:
    """Reductions over the processes of a run. Each method is called by all processes."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over processes."""
        if self.count == 1:
            return tensor
        return self._accelerator.reduce(tensor.to(self._accelerator.device), reduction="sum")

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of all processes."""
        return tensor if self.count == 1 else self._accelerator.gather(tensor)

    def mean(self, values: Tensor) -> float:
        """The mean of all values of all processes."""
        count, added = self.total(torch.stack([torch.ones_like(values).sum(), values.sum()]).float()).tolist()
        return added / count if count else math.nan

    def max(self, number: int) -> int:
        """The maximum of a number over processes."""
        return number if self.count == 1 else max_over_processes(number, self._accelerator.device)


class GlobalBatches(Sampler[list[int]]):
    """This process's share of every batch of an epoch.

    A global batch is the next ``size * processes`` examples, fewer at the end of an epoch. It is split as evenly as
    possible; shares may be empty. (Accelerate fills up the last batch with examples from the start of the epoch, which
    are then trained on twice.) `count` examples make an epoch, and `size` of them a batch of one process. The random
    order differs between epochs; without a `seed`, the order is kept. `drop_last` skips an incomplete last batch.
    """

    def __init__(
        self, count: int, size: int, seed: int | None, process: int = 0, processes: int = 1, drop_last: bool = False
    ) -> None:
        self.count, self.size, self.seed, self.drop_last = count, size, seed, drop_last
        self.process, self.processes = process, processes
        self.epoch = 0

    @classmethod
    def of(cls, trainer: Any) -> GlobalBatches:
        """The training batches of a `transformers.Trainer`."""
        args = trainer.args
        sequential = getattr(args, "train_sampling_strategy", "random") == "sequential"
        return cls(
            len(trainer.train_dataset),
            trainer._train_batch_size,
            None if sequential else args.seed if args.data_seed is None else args.data_seed,
            trainer.accelerator.process_index,
            trainer.accelerator.num_processes,
            args.dataloader_drop_last,
        )

    @property
    def batch_sampler(self) -> GlobalBatches:
        """This object, because Trainer looks for `set_epoch` here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.size * self.processes
        return self.count // together if self.drop_last else -(-self.count // together)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.count))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.count, generator=generator).tolist()
        together = self.size * self.processes
        for number in range(len(self)):
            yield order[number * together : (number + 1) * together][self.process :: self.processes]


def accumulate(accelerator: Any, model: Any, loss: Callable[[], Tensor], last: bool) -> Tensor:
    """Compute one part of a step's loss and its gradients, which are summed over processes in the last part only.

    The parts add up. (DeepSpeed would divide each by the number of accumulation steps, and take an optimizer step after
    each.) `loss` runs the forward pass. In gradient accumulation, Trainer delays the sum on its own, whatever `last`
    is. Returns the loss, without gradient.
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


def check_finite(
    loss: Tensor | float,
    where: str,
    suspects: str = "the data",
    outcome: str = "training stopped before the step, so nothing was changed",
) -> None:
    """Raise instead of training on a loss that is not finite. `where` names the step and its examples, and `suspects`
    what to inspect. Raises TrainingError if the loss is infinite or NaN; a caller that has taken steps undoes them.
    """
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss is {value}; {outcome}",
            where=where,
            expected="a finite loss",
            remedy=f"lower --learning_rate, check {suspects}, and resume from the last checkpoint with "
            "--resume_from_checkpoint true",
        )
