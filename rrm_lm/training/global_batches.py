"""Which examples each process takes, so that all of them together take every example once a pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


class GlobalBatches(Sampler[list[int]]):
    """This process's part of every batch of a pass over the examples.

    A batch of all processes together is the same, however many there are: the next ``size * processes`` examples, of
    which there are fewer at the end of a pass. Parts are as even as can be, and empty where there is nothing left.
    (Accelerate fills up the last batch with examples from the front, which are then learned from twice.)

    Args:
        count: Examples of a pass.
        size: Examples of a batch on each process.
        seed: Of the order, which is another one in each epoch; ``None`` for the order as it is.
        process, processes: Which process this is of how many.
        drop_last: Leave a batch out that is not full.
    """

    def __init__(
        self,
        count: int,
        size: int,
        seed: int | None,
        process: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.count, self.size, self.seed, self.drop_last = count, size, seed, drop_last
        self.process, self.processes = process, processes
        self.epoch = 0

    @classmethod
    def of(cls, trainer: Any) -> GlobalBatches:
        """The batches that a `transformers.Trainer` trains on: at random, or with sequential sampling as they are."""
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
        """Itself: where Trainer looks for what it tells of the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, counted from 0."""
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
