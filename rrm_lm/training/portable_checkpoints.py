"""Checkpoints that any number of processes can go on from, sharded or not.

Trainer writes a sharded run as shards, the frozen model included, and reads it back in one way only; so it does with
DeepSpeed's. Here a checkpoint has the very files that one process writes, whatever wrote it: adapters and heads, and
the optimizer's state, put together. Both are small, since only what is trained is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm_lm.errors import CheckpointError
from rrm_lm.models.saving.adapters import read_json
from rrm_lm.models.sharding import configure_fsdp, full_tensor, register_forward, shard_like
from rrm_lm.storage import write_json
from rrm_lm.training.checkpoints import VerifiedCheckpoints, checkpoint_to_resume
from rrm_lm.training.zero_states import ZeroStates

logger = logging.getLogger(__name__)

PROCESSES_FILE = "processes.json"
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # as Trainer calls them


class PortableCheckpoints(VerifiedCheckpoints):
    """A mixin in front of a `transformers.Trainer`, whose `_save` all processes call if the model is sharded.

    How a model is sharded is arranged here, too.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`VerifiedCheckpoints.train`. Raises what :meth:`checkpoint_to_resume` raises."""
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """The checkpoint to go on from, if one is asked for, and if these processes can go on from it.

        Raises:
            CheckpointError: There is no whole one, the named one is broken, or it is of another number of processes.
        """
        checkpoint = checkpoint_to_resume(str(self.args.output_dir), resume_from_checkpoint)
        if checkpoint is not None:
            check_processes(checkpoint, self._shape(), self.allows_world_size_change)
        return checkpoint

    optimizer: Any
    lr_scheduler: Any
    _zero_states: ZeroStates | None = None

    @property
    def allows_world_size_change(self) -> bool:
        """Whether a run may go on with another number of processes."""
        return bool(getattr(self.args, "allow_world_size_change", False))

    def _shape(self) -> dict[str, int]:
        """How many processes there are, and how many items (pieces of feedback, episodes) all of them take a step."""
        processes = self.accelerator.num_processes
        local = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return {"processes": processes, "items_per_step": local * processes}

    @property
    def is_cut(self) -> bool:
        """Whether a process has a part of the optimizer's state alone."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, without groups that have no parameters (adapters have no biases), as DeepSpeed has it."""
        made = super().create_optimizer(*args, **kwargs)
        made.param_groups[:] = [group for group in made.param_groups if group["params"]]
        if self.is_deepspeed_enabled:
            self._zero_states = ZeroStates(made)
        return made

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        configure_fsdp(self.accelerator, model)
        theirs = None if self.is_deepspeed_enabled else resume_from_checkpoint  # they would look for DeepSpeed's files
        prepared = super()._prepare_for_training(max_steps, train_dataloader, theirs)
        register_forward(model)
        if theirs is None and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    # -- saving ---------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model. Called by all processes."""
        if not self.is_cut:
            super().save_model(output_dir, _internal_call)
            return
        self._save(str(self.args.output_dir) if output_dir is None else output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_cut:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self._zero_states is not None:
            state = self._zero_states.whole(self.optimizer.optimizer)
        else:
            state = whole_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_json(Path(output_dir) / PROCESSES_FILE, self._shape())

    # -- loading --------------------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_cut or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True)
        if self._zero_states is not None:
            self._zero_states.load(self.optimizer.optimizer, state)
        else:
            self.optimizer.load_state_dict(sharded_state(state, self.optimizer.param_groups))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))


def whole_state(state: Any) -> Any:
    """An optimizer's state with every shard made whole, on the CPU. Called by all processes."""
    if isinstance(state, Tensor):
        return full_tensor(state).cpu()
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    return [whole_state(value) for value in state] if isinstance(state, list) else state


def sharded_state(state: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole optimizer's state, cut as the parameters are that it belongs to.

    Args:
        state: As `torch.optim.Optimizer.state_dict` has it.
        groups: The optimizer's own groups of parameters, in the same order.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    cut: dict[int, Any] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state["state"].get(number, {}).items():
            fits = isinstance(value, Tensor) and value.shape == parameter.shape
            cut.setdefault(number, {})[name] = shard_like(value, parameter) if fits else value
    return {**state, "state": cut}


def check_processes(checkpoint: Path, shape: Mapping[str, int], allowed: bool) -> None:
    """Refuse to go on with another number of processes, unless that is allowed and comes to the same steps.

    Args:
        checkpoint: What to go on from.
        shape: This run's processes, and the items that all of them take a step.
        allowed: Whether another number of processes is.

    Raises:
        CheckpointError: It is not, or a step would take another number of items: then the position in the data, which
            is counted in steps, would be another one.
    """
    file = checkpoint / PROCESSES_FILE
    if not file.is_file():
        return  # of a version that did not write it down
    then = read_json(file)
    if then.get("processes") == shape["processes"] and then.get("items_per_step") == shape["items_per_step"]:
        return
    processes, items = int(then["processes"]), int(then["items_per_step"])
    if processes != shape["processes"] and not allowed:
        raise CheckpointError(
            f"The checkpoint was written by {processes} processes, and these are {shape['processes']}",
            where=str(checkpoint),
            expected="the same number, for then the run goes on bit for bit",
            remedy=f"start {processes} processes, or pass --allow_world_size_change true to go on with the same "
            "weights from the same place in the data",
        )
    if items != shape["items_per_step"]:
        raise CheckpointError(
            f"A step took {items} items on all processes together, and would take {shape['items_per_step']}",
            where=str(checkpoint),
            expected=f"{items}: the place in the data is counted in steps",
            remedy="set per_device_train_batch_size times gradient_accumulation_steps to "
            + (f"{items // shape['processes']}" if items % shape["processes"] == 0 else f"a share of {items}")
            + f", for {shape['processes']} processes",
        )
    logger.warning(
        "going on with %d processes from a checkpoint of %d: the same weights, optimizer and place in the data; random "
        "numbers are others",
        shape["processes"],
        processes,
    )
