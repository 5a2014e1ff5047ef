"""Sums over processes, of one as of many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Processes:
    """All processes of a run. What is called here must be called by each of them.

    Args:
        accelerator: Knows of them.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over processes."""
        if self.count == 1:
            return tensor
        return self._accelerator.reduce(tensor.to(self._accelerator.device), reduction="sum")

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes below each other."""
        return tensor if self.count == 1 else self._accelerator.gather(tensor)

    def mean(self, values: Tensor) -> float:
        """The mean of all values of all processes."""
        count, added = self.total(torch.stack([torch.ones_like(values).sum(), values.sum()]).float()).tolist()
        return added / count

    def most(self, number: int) -> int:
        """The greatest of the processes' numbers."""
        return int(self.gather(torch.tensor([number], device=self._accelerator.device)).max())
