"""The base of all trainers: atomic checkpoints that any number of processes can resume.

Trainer and DeepSpeed save a sharded run as shards that only fit the same launch and include the frozen model. Here
every checkpoint has the files that a single process would write: adapters and heads, and the gathered optimizer state.
Both are small, because they only hold trained parameters.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from rrm_lm.models.saving.adapters import read_weights
from rrm_lm.models.saving.policies import Policy, PolicySettings, save_policy
from rrm_lm.models.sharding import configure_fsdp, register_forward
from rrm_lm.storage import commit_folder, read_object, replace_files, report_full_disk, staged_file, write_json
from rrm_lm.training.checkpoints import PROCESSES_FILE, check_processes, checkpoint_to_resume, prune
from rrm_lm.training.optimizer_states import ZeroStates, gather_state, shard_state
from rrm_lm.training.processes import GlobalBatches, Processes

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

# Hidden; the name lets `clear_leftovers` delete it after a crash.
_CHECKPOINT_STAGING = ".checkpoint.staging-trainer"
_MODEL_STAGING = ".model.staging-trainer"
TRAINER_STATE = "trainer_state.json"
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # Trainer's names


class ResumableTrainer(_Trainer):
    """A mixin to put before a `transformers.Trainer`: ``class RewardTrainer(ResumableTrainer, Trainer)``.

    A subclass implements :meth:`save_weights` and :meth:`load_weights`. During a save, the trainer's output folder is a
    staging folder, which receives everything (model, optimizer, scheduler, scaler, random states of every process,
    trainer state). Then the checkpoint is synced to disk, gets its manifest and is renamed, and older ones are pruned.
    All processes write into one staging folder, so they must share a file system, or have one each with
    `save_on_each_node`.
    """

    optimizer: Any
    lr_scheduler: Any
    _staging: Path | None = None
    _to_push: list[str]
    _zero_states: ZeroStates | None = None

    # -- implemented by subclasses ------------------------------------------------------------------------------------

    def save_weights(self, folder: Path, write: bool) -> None:
        """Write the trained weights. Called by all processes if the model is sharded; `write` is True in one."""
        raise NotImplementedError

    def load_weights(self, folder: Path) -> None:
        """Load what :meth:`save_weights` wrote. Called by all processes."""
        raise NotImplementedError

    # -- used by subclasses -------------------------------------------------------------------------------------------

    @cached_property
    def processes(self) -> Processes:
        return Processes(self.accelerator)

    def global_dataloader(self) -> DataLoader[Any]:
        """Every training example once per epoch, for any number of processes."""
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=GlobalBatches.of(self),
            collate_fn=self.data_collator,
            # A separate generator, so that creating an iterator does not advance the random state that a resumed run
            # starts from.
            generator=torch.Generator(),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    @property
    def is_saving_checkpoint(self) -> bool:
        """Whether :meth:`save_weights` writes a checkpoint rather than a final model."""
        return self._staging is not None

    # -- resuming -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, resuming only from a verified checkpoint. Raises CheckpointError (see
        :meth:`checkpoint_to_resume`).
        """
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """The checkpoint to resume from, if requested. Raises CheckpointError if no checkpoint is intact, the named one
        is broken, or another number of processes wrote it.
        """
        checkpoint = checkpoint_to_resume(str(self.args.output_dir), resume_from_checkpoint)
        if checkpoint is not None:
            check_processes(checkpoint, self._shape(), bool(getattr(self.args, "allow_world_size_change", False)))
        return checkpoint

    def _shape(self) -> dict[str, int]:
        """Number of processes, and number of items (pieces of feedback, episodes) per global step."""
        processes = self.accelerator.num_processes
        local = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return {"processes": processes, "items_per_step": local * processes}

    @property
    def _shards_optimizer(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer without empty parameter groups (adapters have no biases); DeepSpeed drops them too."""
        made = super().create_optimizer(*args, **kwargs)
        made.param_groups[:] = [group for group in made.param_groups if group["params"]]
        if self.is_deepspeed_enabled:
            self._zero_states = ZeroStates(made)
        return made

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        configure_fsdp(self.accelerator, model)
        # With DeepSpeed, Trainer would look for DeepSpeed's files.
        trainers = None if self.is_deepspeed_enabled else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, trainers)
        register_forward(model)
        if trainers is None and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self.load_weights(Path(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._shards_optimizer or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True)
        if self._zero_states is not None:
            self._zero_states.load(self.optimizer.optimizer, state)
        else:
            self.optimizer.load_state_dict(shard_state(state, self.optimizer.param_groups))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    # -- saving checkpoints -------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        place = run_dir / f"checkpoint-{self.state.global_step}"
        self._to_push = []
        with self._shared_staging(run_dir / _CHECKPOINT_STAGING) as staging:
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            self._name_best_checkpoint(run_dir, staging / place.name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                commit_folder(staging / place.name, place, replace=True)
                best = self.state.best_model_checkpoint
                prune(run_dir, self.args.save_total_limit, keep=[place, *([Path(best)] if best else [])])
        if self._to_push:
            super()._push_from_checkpoint(str(place))

    @contextmanager
    def _shared_staging(self, staging: Path) -> Iterator[Path]:
        """Yield an empty folder for all processes to write into; delete it at the end. Raises CheckpointError if the
        disk is full.
        """
        with report_full_disk(staging.parent):
            try:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    staging.mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                yield staging
            finally:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, run_dir: Path, staged: Path) -> None:
        """Record the best checkpoint under its final name; transformers recorded its name in the staging folder."""
        step = self.state.best_global_step
        best = run_dir / f"checkpoint-{step}"
        if step and (best.name == staged.name or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Delay an upload until the checkpoint has its final name: uploads read the folder in the background."""
        if self._staging is not None:
            self._to_push.append(checkpoint_folder)
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._shards_optimizer:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self._zero_states is not None:
            state = self._zero_states.gather(self.optimizer.optimizer)
        else:
            state = gather_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_json(Path(output_dir) / PROCESSES_FILE, self._shape())

    # -- saving the model and its logs --------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model. Called by all processes."""
        self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        write = bool(self.args.should_save)
        if write or self.is_fsdp_enabled:  # the other processes contribute their shards
            folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
            if write:
                folder.mkdir(parents=True, exist_ok=True)
            self.save_weights(folder, write)

    def save_whole(self, folder: Path) -> None:
        """Like `save_model`, but replaces files in `folder` only at the end, so that none is ever half written. Called
        by all processes. Raises CheckpointError if the disk is full.
        """
        with self._shared_staging(folder / _MODEL_STAGING) as staging:
            self.save_model(str(staging), _internal_call=True)  # no upload from the staging folder
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                replace_files(staging, folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Hugging Face's card would replace the run's, and needs a model with a configuration."""

    def upload(self) -> None:
        """Push the output folder to the Hub if ``push_to_hub`` is set. Called by all processes at the end of a run."""
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="End of training")

    def save_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Write Hugging Face's `<split>_results.json` and `all_results.json`, each atomically."""
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        write_json(folder / f"{split}_results.json", dict(sorted(metrics.items())))
        every = folder / "all_results.json"
        write_json(every, dict(sorted({**read_object(every), **metrics}.items())))

    def save_state(self) -> None:
        """Write Hugging Face's `trainer_state.json` atomically."""
        if self.is_world_process_zero():
            with staged_file(Path(str(self.args.output_dir)) / TRAINER_STATE) as staged:
                self.state.save_to_json(str(staged))


class AdapterTrainer(ResumableTrainer):
    """Trains a policy's adapter, and saves it in the format of :mod:`rrm_lm.models.saving.policies`."""

    def keep_for_saving(self, policy: Policy, tokenizer: Any, settings: PolicySettings) -> None:
        """Call it before TRL's `__init__`. `settings` are saved with every checkpoint."""
        assert policy.adapter is not None
        self.backbone, self.adapter = policy.backbone, policy.adapter
        self.policy_settings, self._saved_tokenizer = settings, tokenizer

    def save_weights(self, folder: Path, write: bool) -> None:
        """Write the adapter in PEFT's format. PEFT itself would use a subfolder for a name other than `default`."""
        save_policy(self.backbone, folder, self._saved_tokenizer, self.policy_settings, self.adapter, write)

    def load_weights(self, folder: Path) -> None:
        read_weights(self.backbone, self.adapter, folder)
