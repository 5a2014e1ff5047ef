"""One process computes on one device, however many the machine has, and is one of those that were launched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rrm_lm.models.pretrained import default_device, process_state
from rrm_lm.models.sharding import refuse_zero3

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

    def __post_init__(self) -> None:
        if default_device().type == "cpu":
            # Else every process of a launch on such a machine takes itself for the only one. Not `use_cpu`, which would
            # be written down with the settings and bind whoever repeats the run to the CPU.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        super().__post_init__()
        refuse_zero3(getattr(self, "deepspeed_plugin", None))
        process_state()  # TrainingArguments has made the state anew

    @property
    def n_gpu(self) -> int:
        """Devices that this process computes on, as Trainer counts them: 0 on the CPU, else 1."""
        return min(1, super().n_gpu)
