"""Shared settings of all trainers: defaults, one device per process, activation checkpointing, and checks."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rrm_lm.errors import ConfigError
from rrm_lm.models.pretrained import default_device, process_state
from rrm_lm.models.sharding import refuse_zero3
from rrm_lm.options import check, check_minimum, option

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Base
else:
    _Base = object

_NEWER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# Padded tokens that go through a model at once, and tokens held at once while sampling, where nothing else is known.
TOKENS = {"micro_batch_tokens": 2048, "rollout_batch_tokens": 16384}
NO_LIGER = {"use_liger_kernel": "layers as transformers has them; this project fuses only where it is exact"}


def _switch(help: str) -> Any:
    """An option that is unset by default, and true as a flag without a value."""
    return field(default=None, metadata={"help": help, "nargs": "?", "const": True})


@dataclass
class TrainerArguments(_Base):
    """A mixin to put before `TrainingArguments`, or a subclass of it, such as TRL's.

    - **One device per process.** If one process sees several GPUs, Trainer copies the model to all of them
      (`torch.nn.DataParallel`) and splits tensor arguments. Our batches are not plain tensors, so each copy would
      compute the whole batch. To use several devices, launch several processes (``--num_processes``).
    - **Activation checkpointing.** transformers 5.23 renamed ``gradient_checkpointing`` and warns about the old name,
      which TRL sets by default. Earlier versions only have the old name. Here both names work in every version.
    """

    logging_nan_inf_filter: bool = option(False, "Hide losses that are not numbers.")
    remove_unused_columns: bool = option(False, "Not used: columns are read by name.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Not needed: every trained parameter takes part in every pass."
    )
    dataloader_pin_memory: bool = option(False, "Pin batches in memory, for GPUs.")
    activation_checkpointing: bool | None = _switch("Recompute activations, for memory at the cost of time; unset: no.")
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(
        None, "How: for activation_checkpointing_enable()."
    )
    gradient_checkpointing: bool | None = _switch("Earlier name of activation_checkpointing.")
    allow_world_size_change: bool = option(
        False, "Resume from a checkpoint of another number of processes, at the same place in the data."
    )

    compile_layers: bool = option(
        False, "Compile each layer with torch.compile, without activation_checkpointing; the first steps take minutes."
    )
    dry_run: bool = option(
        False, "Only train one step, with the longest rows on every process, and say how much memory it took."
    )

    def __post_init__(self) -> None:
        if self.dry_run:
            self._prepare_dry_run()
        if default_device().type == "cpu":
            # Without it, each process of a launch on a CPU machine assumes that it is the only one. `use_cpu` would be
            # saved with the settings and force every repeat of the run onto the CPU.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        for old, new in _NEWER_NAMES.items():
            chosen = getattr(self, old) if getattr(self, new) is None else getattr(self, new)
            setattr(self, new, chosen)
            setattr(self, old, chosen)
        self.activation_checkpointing = self.gradient_checkpointing = bool(self.activation_checkpointing)
        if self.compile_layers and self.activation_checkpointing:
            raise ConfigError(
                "torch.compile cannot trace layers that recompute their activations",
                where="compile_layers and activation_checkpointing",
                expected="one of them",
            )
        super().__post_init__()
        # Before 5.23, transformers parses JSON for the old name only.
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        whole = "compile_layers, which compiles each layer; a whole model would be compiled again for every role"
        refuse_settings(self, {"torch_compile": whole})
        refuse_zero3(getattr(self, "deepspeed_plugin", None))
        check_packages(self)
        process_state()  # TrainingArguments resets the state

    def _prepare_dry_run(self) -> None:
        """Settings with which a run leaves no files: its folder is temporary."""
        folder = tempfile.TemporaryDirectory(prefix="rrm_lm-dry_run-")
        atexit.register(folder.cleanup)
        self.output_dir, self.max_steps, self.resume_from_checkpoint = folder.name, 1, None
        self.save_strategy, self.eval_strategy, self.report_to, self.logging_steps = "no", "no", "none", 1
        self.load_best_model_at_end = self.push_to_hub = self.eval_on_start = False

    @property
    def n_gpu(self) -> int:
        """Number of devices of this process, as Trainer counts them: 0 on the CPU, else 1."""
        return min(1, super().n_gpu)


@dataclass
class FeedbackArguments(TrainerArguments):
    """Shared settings of training on feedback: reward models and SFT."""

    learning_rate: float = option(0.0002, "Peak learning rate of the adapter (and the head of a reward model).")
    num_train_epochs: float = option(1.0, "Passes over the feedback.")
    lr_scheduler_type: str = option("linear", "Learning-rate schedule.")
    warmup_steps: float = option(0.05, "Warm-up steps, or their share of all steps below 1.")
    logging_steps: float = option(5, "Log every this many steps.")
    max_length: int | None = option(
        1024, "Longest prompt plus response in tokens; longer ones lose their oldest turns."
    )
    activation_checkpointing: bool | None = _switch(
        "Recompute activations, for memory at the cost of time; unset: on GPUs for SFT, else never."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, micro_batch_tokens=1, max_length=1)
        smoothing = "at least 0 and below 0.5: the assumed share of flipped labels"
        check(
            self,
            ("seed", 0 <= self.seed < 2**32, "at least 0 and below 2^32"),
            ("label_smoothing_factor", 0 <= self.label_smoothing_factor < 0.5, smoothing),
        )


# -- checks -----------------------------------------------------------------------------------------------------------


def check_packages(args: Any) -> None:
    """Raise a ConfigError if a package that `report_to` or `optim` needs is not installed, before a model is loaded."""
    from transformers import Trainer
    from transformers.integrations import integration_utils

    known = set(integration_utils.INTEGRATION_TO_CALLBACK)
    usable = {*integration_utils.get_available_reporting_integrations(), "flyte"} if args.report_to else set()
    for name in args.report_to or ():
        if name not in usable:
            what = "needs a package that is not installed" if name in known else "is not a tracker"
            raise ConfigError(
                f"report_to {name} {what}",
                where="report_to",
                expected="none, or one or more of " + ", ".join(sorted(known)),
                remedy=f"pip install {name}, or leave out --report_to" if name in known else "",
            )
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        if isinstance(error, ImportError) or isinstance(error.__context__, ImportError):
            remedy = "install the package, or choose another optimizer"
            what = f"The optimizer {args.optim.value} needs a package that is not installed"
            raise ConfigError(f"{what} ({' '.join(str(error).split())})", where="optim", remedy=remedy) from error


def check_choice(args: Any, name: str, known: Sequence[Any]) -> None:
    """Raise a ConfigError unless the setting is one of `known`."""
    check(args, (name, getattr(args, name) in known, "one of " + ", ".join(map(str, known))))


def check_above_zero(args: Any, *names: str) -> None:
    """Raise a ConfigError unless each setting is above 0. None is allowed."""
    check(args, *((name, getattr(args, name) is None or getattr(args, name) > 0, "above 0") for name in names))


def refuse_settings(args: Any, reasons: Mapping[str, str]) -> None:
    """Raise a ConfigError if one of these settings is set. `reasons` says what to do instead."""
    for name, reason in reasons.items():
        if getattr(args, name):
            raise ConfigError(f"{name} cannot be used here", where=name, expected=reason, remedy="leave it out")


def open_sizes(args: Any) -> list[str]:
    """Which of `TOKENS` the settings leave open."""
    return [name for name in TOKENS if getattr(args, name, 0) is None]


def set_sizes(args: Any, tokens: Mapping[str, int]) -> None:
    """Set sizes that are still open."""
    for name in set(open_sizes(args)) & set(tokens):
        setattr(args, name, tokens[name])
