"""The base of PPO's trainer: an agent that is prepared for training, its prompts, and its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_callback import ExportableState
from trl.experimental.ppo.ppo_trainer import OnlineTrainerState

from rrm_lm.models.agent import AgentModel
from rrm_lm.models.agent_files import load_agent, save_agent, trained
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.models.sharding import configure_fsdp, full_copy_fits, max_over_processes, register_forward
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.control import KLControl, LastGood, RewardScale, Steering
from rrm_lm.training.ppo.passes import AgentPasses
from rrm_lm.training.ppo.prompts import PromptOrder, check_lengths, encode_prompts
from rrm_lm.training.ppo.update import PolicyUpdate
from rrm_lm.training.trainer import TRAINER_STATE, ResumableTrainer

logger = logging.getLogger(__name__)


class AgentTrainer(ResumableTrainer):
    """Prepares an agent and its prompts, and saves and restores it. Trainer's `__init__` comes first."""

    args: PPOConfig
    state: OnlineTrainerState
    model: Any  # the agent, wrapped
    agent: AgentModel
    settings: PolicySettings
    sampling: Sampling

    def keep_names_of_trl(self, ref_model: Any, reward_model: Any) -> None:
        """Set the attributes that TRL's callbacks and users expect."""
        self.policy_model, self.value_model = self.agent.policy, self.agent.value_model
        self.ref_model, self.reward_model = ref_model, reward_model
        self.is_peft_model = self.agent.policy_adapter is not None
        self.model_adapter_name, self.ref_adapter_name = self.agent.policy_adapter, self.agent.reference_adapter
        self.train_dataset_len = len(self.train_dataset)  # type: ignore[arg-type]
        callbacks = [*self.callback_handler.callbacks, self.control]
        stateful: list[Any] = [each for each in callbacks if isinstance(each, ExportableState)]
        self.state = OnlineTrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=stateful,
        )

    def prepare_prompts(self, chat: ChatFormat | None, collator: Callable[..., Any] | None) -> None:
        args, tokenizer = self.args, self.processing_class
        self.prompts = encode_prompts(self.train_dataset, chat, tokenizer, collator)  # type: ignore[arg-type]
        positions = context_length(self.agent.backbone.config)
        check_lengths(self.prompts, args.response_length, positions)
        args.count_batches(self.processes.count, len(self.prompts))
        assert args.local_batch_size is not None
        self.order = PromptOrder(
            len(self.prompts),
            args.local_batch_size // args.samples_per_prompt,
            args.seed if args.data_seed is None else args.data_seed,
            self.accelerator.process_index,
            self.processes.count,
        )
        self.dataloader = DataLoader(
            self.prompts,  # type: ignore[arg-type]
            batch_sampler=self.order,
            collate_fn=list,
            # A separate generator, so that creating an iterator does not advance the random state that a resumed run
            # starts from.
            generator=torch.Generator(),
        )

    def prepare_model(self) -> None:
        args = self.args
        if args.activation_checkpointing:
            self.agent.activation_checkpointing_enable(args.activation_checkpointing_kwargs)  # type: ignore[arg-type]
        for backbone in (self.agent.backbone, self.agent.value_backbone, self.agent.reference_backbone):
            if args.compile_layers and backbone is not None:
                backbone.compile_layers()
        self.create_optimizer_and_scheduler(num_training_steps=args.num_total_batches or 1)
        _ = self.agent.can_share  # test it before the model is sharded
        configure_fsdp(self.accelerator, self.agent)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        register_forward(self.agent)
        self.choose_gathering()
        self.model_wrapped = self.model
        handler: Any = self.callback_handler
        handler.optimizer, handler.lr_scheduler = self.optimizer, self.lr_scheduler
        handler.train_dataloader = self.dataloader
        self.passes = AgentPasses(self.model, self.sampling)
        self.updater = PolicyUpdate(
            args, self.passes, self.accelerator, self.optimizer, self.processes, checks_steps=not self.is_peft_model
        )
        target = args.kl_target if args.kl_control == "adaptive" else None
        self.steering = Steering(KLControl(args.kl_coef, target, args.kl_gain), RewardScale())
        self.last_good = LastGood(partial(trained, self.agent))
        self.stop_reason: str | None = None

    def choose_gathering(self) -> None:
        """Gather the whole model for rollouts if that fits on every device. Called by all processes."""
        wanted = self.args.ds3_gather_for_generation
        short = wanted and max_over_processes(int(not full_copy_fits(self.agent)), self.accelerator.device)
        self.agent.gathers = wanted and not short
        if short:
            logger.warning(
                "the whole model does not fit on a device, so rollouts gather its layers one by one, which is slower; "
                "--rollouts server samples with another program"
            )

    def get_train_dataloader(self) -> DataLoader:
        return self.dataloader

    # -- saving -------------------------------------------------------------------------------------------------------

    def save_weights(self, folder: Path, write: bool) -> None:
        """Write the policy and the value function; in a checkpoint also the adaptive state (KL coefficient ...)."""
        save_agent(
            self.agent, folder, self.processing_class, self.settings, whole=self.is_saving_checkpoint, write=write
        )
        if self.is_saving_checkpoint:
            self.last_good.save(folder, write)
            if write:
                self.steering.save(folder)

    def load_weights(self, folder: Path) -> None:
        load_agent(self.agent, folder)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Restore everything except the random states. (Trainer's loop, which would do it, is not used.) Raises
        CheckpointError if the weights do not fit this agent.
        """
        self.load_weights(checkpoint)
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_scaler(str(checkpoint))
        self.steering.load(checkpoint)
        self.last_good.load(checkpoint, self.agent.device)
        local, world = self.state.is_local_process_zero, self.state.is_world_process_zero
        self.state = OnlineTrainerState.load_from_json(str(checkpoint / TRAINER_STATE))  # type: ignore[assignment]
        self.state.is_local_process_zero, self.state.is_world_process_zero = local, world
        self._load_callback_state()
