"""What the settings of all trainers share: defaults, one device per process, activation checkpointing, and checks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rrm_lm.errors import ConfigError
from rrm_lm.models.pretrained import default_device, process_state
from rrm_lm.models.sharding import refuse_zero3

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Base
else:
    _Base = object

_NEWER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
NO_LIGER = {"use_liger_kernel": "layers as transformers has them; this project fuses only where it is exact"}


@dataclass
class TrainerArguments(_Base):
    """A mixin to put before `TrainingArguments`, or a subclass of it, such as TRL's.

    - **One device per process.** If one process sees several GPUs, Trainer would copy the model to all of them
      (`torch.nn.DataParallel`) and split the tensors among its arguments. Our batches are not plain tensors, so each
      copy would compute the whole batch. To use several devices, launch several processes (``--num_processes``).
    - **Activation checkpointing.** transformers 5.23 renamed ``gradient_checkpointing`` and warns about the old name,
      which TRL sets by default; earlier versions know only the old name. Here both names work in every version.
    """

    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: columns are read by name."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter takes part in every pass."}
    )
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory, for GPUs."})
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations, for memory at the cost of time; unset: no.",
            "nargs": "?",
            "const": True,
        },
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How: for activation_checkpointing_enable()."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Earlier name of activation_checkpointing.", "nargs": "?", "const": True}
    )
    allow_world_size_change: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint of another number of processes, at the same place in the data."},
    )

    def __post_init__(self) -> None:
        if default_device().type == "cpu":
            # Otherwise each process of a launch on a CPU machine believes it is the only one. Not `use_cpu`: it would
            # be saved with the settings, and bind everyone who repeats the run to the CPU.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        for old, new in _NEWER_NAMES.items():
            chosen = getattr(self, old) if getattr(self, new) is None else getattr(self, new)
            setattr(self, new, chosen)
            setattr(self, old, chosen)
        self.activation_checkpointing = self.gradient_checkpointing = bool(self.activation_checkpointing)
        super().__post_init__()
        # Before 5.23, transformers parses JSON only for the old name.
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        refuse_zero3(getattr(self, "deepspeed_plugin", None))
        process_state()  # TrainingArguments has reset the state

    @property
    def n_gpu(self) -> int:
        """Devices that this process computes on, as Trainer counts them: 0 on the CPU, else 1."""
        return min(1, super().n_gpu)


# -- checks -----------------------------------------------------------------------------------------------------------
# Each raises a ConfigError that names the setting. A setting that is None is unset, and passes.


def check_choice(args: Any, name: str, known: Sequence[Any]) -> None:
    """The setting is one of `known`."""
    if getattr(args, name) not in known:
        expected = "one of " + ", ".join(map(str, known))
        raise ConfigError(f"{name} is {getattr(args, name)!r}", where=name, expected=expected)


def check_at_least(args: Any, least: float, *names: str) -> None:
    """Each setting is at least this number."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{name} is {value}", where=name, expected=f"at least {least}")


def check_positive(args: Any, *names: str) -> None:
    """Each setting is above 0."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}", where=name, expected="above 0")


def check_seed_and_smoothing(args: Any) -> None:
    """The seed fits every random generator, and label smoothing leaves the labels more likely right than wrong."""
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"seed is {args.seed}", where="seed", expected="at least 0 and below 2^32")
    if not 0 <= args.label_smoothing_factor < 0.5:
        raise ConfigError(
            f"label_smoothing_factor is {args.label_smoothing_factor}",
            where="label_smoothing_factor",
            expected="at least 0 and below 0.5: the share of labels believed to be flipped",
        )


def refuse_settings(args: Any, reasons: Mapping[str, str]) -> None:
    """None of these settings is set, each with what is done instead."""
    for name, reason in reasons.items():
        if getattr(args, name):
            raise ConfigError(f"{name} cannot be used here", where=name, expected=reason, remedy="leave it out")
