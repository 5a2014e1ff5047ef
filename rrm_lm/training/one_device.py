"""One process computes on one device, however many the machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Base
else:
    _Base = object


class OneDevice(_Base):
    """A mixin in front of `TrainingArguments`.

    Where a single process sees several GPUs, Trainer takes all of them, by `torch.nn.DataParallel`: it copies
    the model in every pass, and cuts up the tensors among its arguments. Batches here are no plain tensors, so every
    copy would compute the whole of them. Several devices are several processes (``--num_processes``).
    """

    @property
    def n_gpu(self) -> int:
        """Devices that this process computes on, as Trainer counts them: 0 on the CPU, else 1."""
        return min(1, super().n_gpu)
