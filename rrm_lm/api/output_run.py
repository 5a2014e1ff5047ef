"""The output folder of a training run: its lock, its settings file, resuming, and signals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from rrm_lm.api.dry_run import dry_run
from rrm_lm.api.resuming import identity, is_asked, origin
from rrm_lm.errors import ConfigError
from rrm_lm.launch.signals import steps_are_finished
from rrm_lm.launch.stalls import stalls_are_reported
from rrm_lm.models.pretrained import process_state, set_seed
from rrm_lm.models.saving.adapters import recorded_date
from rrm_lm.settings.parsing.parser import write_resolved
from rrm_lm.storage import write_json
from rrm_lm.training.checkpoints import check_space, checkpoint_to_resume
from rrm_lm.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

_REPORTED = {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed", "lora_r", "critique_weight"}
_UNREPORTED = {"hub_token", "push_to_hub_token", "resume_from_checkpoint"}


class OutputRun:
    """A run in its output folder. Entering it locks the folder; nothing in the folder changes until :meth:`begin`.

    It is reentrant: a command may hold the lock while it builds a trainer.

    Args:
        command: Recorded in `run.json`. The output folder of another command is an error.
        config: The trainer's settings, with ``output_dir``, ``seed`` and ``should_save``.
        folder_settings: Has ``overwrite_output_dir`` and ``allow_config_change``.
        settings: The dataclasses written to `config.yaml`; a resumed run must have the same values.
        resume: ``resume_from_checkpoint``, as in `transformers.Trainer.train`.
        more_identity: Other values that must be the same in a resumed run.
    """

    def __init__(
        self,
        command: str,
        config: Any,
        folder_settings: Any,
        settings: Sequence[Any],
        resume: str | bool | None = None,
        more_identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.config, self.settings, self.resume = Path(str(config.output_dir)), config, settings, resume
        self.main, self._merge = bool(config.should_save), bool(getattr(folder_settings, "merge", False))
        self._depth, self._held, self._date = 0, ExitStack(), None
        processes = process_state().num_processes
        self._output = OutputFolder(
            self.folder,
            command=command,
            identity={**identity(*settings, processes=processes), **(more_identity or {})},
            allow_change=folder_settings.allow_config_change,
            resume=is_asked(resume),
            origin=origin(resume),
            overwrite=folder_settings.overwrite_output_dir,
            active=self.main,
            deferred=True,
        )

    def __enter__(self) -> OutputRun:
        if self._depth == 0:
            with ExitStack() as stack:
                stack.enter_context(self._output)
                process_state().wait_for_everyone()
                checkpoint = checkpoint_to_resume(self.folder, self.resume)  # report a broken one before any work
                self._date = None if checkpoint is None else recorded_date(str(checkpoint))
                set_seed(self.config.seed)
                self._held = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(self, *exception: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._held.__exit__(*exception)

    def on_its_date(self, model: Any) -> Any:
        """Settings of a model, with the date that the chat template wrote in the run to resume, if any."""
        return replace(model, chat_date=model.chat_date or self._date)

    def begin(self, **files: Any) -> None:
        """Remove overwritten files, write `config.yaml`, and write each of ``files`` as NAME.json."""
        self._output.begin()
        if self.main:
            write_resolved(self.folder / "config.yaml", *self.settings)
            for name, value in files.items():
                if value is not None:
                    write_json(self.folder / f"{name}.json", value)
        process_state().wait_for_everyone()

    def train(self, trainer: Any, train: Callable[..., Any], steps_per_update: int = 1) -> Any:
        """Call a trainer's `train`. On SIGTERM or Ctrl-C, finish the update and save a checkpoint. Raises
        CheckpointError if the disk has no space for a checkpoint.
        """
        if self.config.dry_run:
            return dry_run(trainer, train)
        if self.main:
            check_space(self.folder, trainer.model, self.config, self._merge)
        with steps_are_finished(trainer, every=steps_per_update), stalls_are_reported(trainer):
            return train(resume_from_checkpoint=self.resume)


def changed_settings(*settings: Any) -> dict[str, object]:
    """The settings that differ from their defaults, and the most important ones in any case, for reports."""
    found: dict[str, object] = {}
    for one in settings:
        for item in fields(one):
            value, default = getattr(one, item.name), item.default
            if item.default_factory is not MISSING:
                default = item.default_factory()
            differs = value != default and isinstance(value, str | int | float | list | dict)
            if item.init and item.name not in _UNREPORTED and (differs or item.name in _REPORTED):
                found[item.name] = value
    return found


@contextmanager
def trainer_settings(whose: str) -> Iterator[None]:
    """Turn library errors about settings that do not fit this machine into a ConfigError. `whose` names the owner of
    the settings in the message.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"No trainer can be made with these settings: {' '.join(str(error).split())}",
            where=f"the settings of {whose}",
            remedy="leave the setting out, or install what it needs",
        ) from error


def check_evaluation(config: Any, held_out: Any, what: str) -> None:
    """Refuse evaluation during training if nothing is held out. Raises ConfigError if ``eval_strategy`` is set without
    a held-out set.
    """
    if not held_out and str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no":
        raise ConfigError(
            f"eval_strategy asks for evaluation during training, and there are no held-out {what}",
            where="eval_strategy",
            remedy="pass --eval_dataset_name or --eval_fraction, or leave out --eval_strategy",
        )
