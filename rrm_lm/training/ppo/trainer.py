"""PPO on one shared backbone: roll out, score, estimate advantages, update.

A subclass of TRL's PPOTrainer. Settings, arguments, callbacks, logged metrics and losses are TRL's: on fixed rollouts
they are proved equal (``tests/unit/training/ppo/test_equivalence.py``; :mod:`rrm_lm.training.ppo.estimates` says where
the defaults differ). The training loop is ours: one root module instead of four models, the shared part of a
computation done once, checkpoints that a run can go on from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from trl.experimental.ppo import PPOTrainer as _TrlPPOTrainer
from trl.experimental.ppo.ppo_trainer import OnlineTrainerState

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.agent import AgentModel, disable_dropout
from rrm_lm.models.agent_files import restore, snapshot, trained
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.models.sharding import configure_fsdp, is_sharded, register_forward
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.portable_checkpoints import PortableCheckpoints
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.control import KLControl, RewardScale, Steering, runaway
from rrm_lm.training.ppo.estimates import Estimates, estimate
from rrm_lm.training.ppo.passes import OwnReward, Passes, PolicyPass
from rrm_lm.training.ppo.processes import Processes
from rrm_lm.training.ppo.prompts import PromptItem, PromptOrder, check_room, encode_prompts
from rrm_lm.training.ppo.reports import PolicyReports, Scores, Stopwatch
from rrm_lm.training.ppo.rollouts import Group, Grouping, Rollouts
from rrm_lm.training.ppo.saving import PolicyCheckpoints
from rrm_lm.training.ppo.trl import agent_from_trl
from rrm_lm.training.ppo.update import PolicyUpdate, Statistics
from rrm_lm.training.reward_sources import ClassifierOnTokens, RewardSource, RewardSum, TokenRewardSource

logger = logging.getLogger(__name__)


class PPOTrainer(PolicyCheckpoints, PolicyReports, PortableCheckpoints, _TrlPPOTrainer):
    """Trains an agent's policy with PPO.

    Args:
        args: Settings. TRL's own PPOConfig is taken to mean TRL's conventions, too.
        processing_class: The tokenizer.
        model: An :class:`AgentModel`; or, as in TRL, the policy's language model, with the next arguments.
        ref_model, reward_model, value_model, peft_config: As in TRL. An agent has its own.
        train_dataset: Prompts as messages, or rows with ``input_ids`` as in TRL.
        data_collator: Makes ``input_ids`` and ``attention_mask`` of rows that do not have them.
        eval_dataset: Prompts to show responses to during training (``num_sample_generations``).
        optimizers, callbacks: As in TRL.
        rewards: Where rewards come from, beside ``reward_model``; none needed for an agent with its own reward.
        chat: How conversations are written; for prompts as messages.
        settings: What is saved with the policy.
    """

    args: PPOConfig
    state: OnlineTrainerState

    def __init__(
        self,
        args: Any,
        processing_class: Any,
        model: Any,
        ref_model: Any = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: Any = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[Any] | None = None,
        peft_config: Any = None,
        *,
        rewards: Sequence[RewardSource | TokenRewardSource] = (),
        chat: ChatFormat | None = None,
        settings: PolicySettings | None = None,
    ) -> None:
        args = args if isinstance(args, PPOConfig) else PPOConfig.from_trl(args)
        if train_dataset is None:
            raise ConfigError("There are no prompts to train on", where="train_dataset")
        theirs = {"ref_model": ref_model, "value_model": value_model, "peft_config": peft_config}
        if not isinstance(model, AgentModel):
            model = agent_from_trl(args, model, **theirs, share=args.share_prefixes)
        elif named := [name for name, value in theirs.items() if value is not None]:
            raise ConfigError(f"An agent has its own {', '.join(named)}", remedy="make the agent with it")
        self.agent: AgentModel = model
        disable_dropout(model)
        # TRL has a field where Trainer has a property, which is asked for when DeepSpeed is set up.
        args.world_size = process_state().num_processes
        # Trainer's own start, not TRL's: it knows of accelerators, wrapping and sharding, and leaves the model whole.
        Trainer.__init__(
            self,
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.processes = Processes(self.accelerator)
        self.settings = settings or PolicySettings(str(model.backbone.causal_lm.name_or_path), method="ppo")
        self._keep_names_of_trl(ref_model, reward_model)
        self._prepare_prompts(chat, data_collator)
        self._prepare_sampling(chat)
        self._prepare_model()
        self._grouping: Grouping | None = None
        self._has_warned = False
        sources: list[Any] = []
        if model.has_reward:
            sources.append(OwnReward(self.passes, self.grouping, model.reward.settings.combination))
        if reward_model is not None:
            sources.append(ClassifierOnTokens(reward_model))
            disable_dropout(reward_model.to(self.accelerator.device))
        self.rewards = RewardSum([*sources, *rewards], args.reward_weights)

    # -- setting up -----------------------------------------------------------------------------------------------

    def _keep_names_of_trl(self, ref_model: Any, reward_model: Any) -> None:
        """Attributes that callbacks and users of TRL look for."""
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

    def _prepare_prompts(self, chat: ChatFormat | None, collator: Callable[..., Any] | None) -> None:
        args, tokenizer = self.args, self.processing_class
        self.prompts = encode_prompts(self.train_dataset, chat, tokenizer, collator)  # type: ignore[arg-type]
        self.eval_prompts: list[PromptItem] = []
        if self.eval_dataset is not None and len(self.eval_dataset):  # type: ignore[arg-type]
            self.eval_prompts = encode_prompts(self.eval_dataset, chat, tokenizer, collator)  # type: ignore[arg-type]
        positions = getattr(self.agent.backbone.config, "max_position_embeddings", None)
        check_room([*self.prompts, *self.eval_prompts], args.response_length, positions)
        args.count_batches(self.processes.count, len(self.prompts))
        assert args.local_batch_size is not None
        self.order = PromptOrder(
            len(self.prompts),
            args.local_batch_size // args.samples_per_prompt,
            args.seed if args.data_seed is None else args.data_seed,
            self.accelerator.process_index,
            self.processes.count,
        )
        # Its own generator: making an iterator must not move the random state that a resumed run starts from.
        self.dataloader = DataLoader(
            self.prompts,  # type: ignore[arg-type]
            batch_sampler=self.order,
            collate_fn=list,
            generator=torch.Generator(),
        )

    def _prepare_sampling(self, chat: ChatFormat | None) -> None:
        """Which tokens end a response: those that are set; else what ends a turn; in TRL's way, none."""
        args = self.args
        self.stop_token_id: int | None = args.stop_token_id
        if args.stop_token == "eos":
            self.stop_token_id = self.processing_class.eos_token_id  # type: ignore[union-attr]
        elif args.stop_token_id is None and chat is not None:
            self.stop_token_id = chat.end_id
        self.end_ids = [] if self.stop_token_id is None else [self.stop_token_id]
        self.sampling = Sampling(args.response_length, args.temperature, args.top_p, args.top_k)

    def _prepare_model(self) -> None:
        args = self.args
        if args.activation_checkpointing:
            self.agent.activation_checkpointing_enable(args.activation_checkpointing_kwargs)  # type: ignore[arg-type]
        self.create_optimizer_and_scheduler(num_training_steps=args.num_total_batches or 1)
        _ = self.agent.can_share  # found out while the model is whole
        configure_fsdp(self.accelerator, self.agent)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        register_forward(self.agent)
        self.agent.gathers = args.ds3_gather_for_generation
        self.model_wrapped = self.model
        handler: Any = self.callback_handler
        handler.optimizer, handler.lr_scheduler = self.optimizer, self.lr_scheduler
        handler.train_dataloader = self.dataloader
        self.passes = Passes(self.model, self.sampling)
        self.updater = PolicyUpdate(args, self.passes, self.accelerator, self.optimizer, self.processes.total)
        target = args.kl_target if args.kl_control == "adaptive" else None
        self.steering = Steering(KLControl(args.kl_coef, target, args.kl_gain), RewardScale())
        self.last_good: dict[str, Tensor] | None = None  # what was trained, as it was when its KL was last in order
        self.stop_reason: str | None = None
        if args.num_sample_generations > 0:
            self.sample_generations_freq = max(1, (args.num_total_batches or 1) // args.num_sample_generations)

    # -- training -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:  # type: ignore[override]
        """Roll out, score, estimate advantages, update; until all episodes are done or something says stop.

        Args:
            resume_from_checkpoint: As Hugging Face has it: true for the newest whole one, or a folder.

        Raises:
            TrainingError: A reward failed, or a loss is not a number. The policy is the one from before that update.
            CheckpointError: The checkpoint is broken or does not fit.
        """
        self._begin(self.checkpoint_to_resume(resume_from_checkpoint))
        prompts = iter(self.dataloader)
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
            watch = Stopwatch(self.accelerator.device)
            with watch("roll_out"):
                rollouts = self.roll_out(next(prompts))
            with watch("score"):
                scores = self.score(rollouts)
            with watch("estimate"):
                estimates, first = self.estimate(rollouts, scores)
            metrics = self.metrics(rollouts, scores, estimates)
            if self._kl_runs_away(metrics):
                break
            with watch("update"):
                statistics = self.update(rollouts, estimates, first)
            self._finish_update(metrics | self.progress_metrics(watch, rollouts), statistics)
        return self._end()

    def roll_out(self, items: Sequence[PromptItem]) -> Rollouts:
        """Let the policy respond to prompts, `samples_per_prompt` times each."""
        args, count = self.args, self.args.samples_per_prompt
        # What is drawn depends on the prompt's place in the update, not on the process that draws it.
        responses = self.agent.roll_out(
            [item.ids for item in items],
            self.sampling,
            end_ids=self.end_ids,
            num_return=count,
            seed=args.seed * 1_000_003 + self.state.global_step,
            first=self.accelerator.process_index * len(items),
            batch_tokens=args.rollout_batch_tokens,
        )
        episodes = [item for item in items for _ in range(count)]
        rollouts = self._rollouts(episodes, [ids for samples in responses for ids in samples])
        if self.end_ids and not any(rollouts.finished) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "no response has ended by itself in %d tokens: raise response_length, set missing_eos_penalty, or look "
                "whether the model writes the token %s",
                args.response_length,
                self.end_ids[0],
            )
        return rollouts

    def score(self, rollouts: Rollouts) -> Scores:
        """Ask every reward, and the reference how likely the responses are."""
        device = self.accelerator.device
        by_source = self.rewards([item.prompt for item in rollouts.items], rollouts.texts, rollouts.lines)
        raw = torch.tensor(self.rewards.total(by_source), device=device)
        if self.args.missing_eos_penalty is not None:
            raw = raw - self.args.missing_eos_penalty * ~self._has_end(rollouts).to(device)
        used = raw
        if self.args.normalize_rewards:
            self.steering.scale.add(raw, self.processes.total)
            used = self.steering.scale(used)
        if self.args.reward_clip is not None:
            used = used.clamp(-self.args.reward_clip, self.args.reward_clip)
        reference = self.passes.reference(self.grouping(rollouts.lines)(), rollouts.is_response)
        return Scores(by_source, raw, used, reference)

    def estimate(self, rollouts: Rollouts, scores: Scores) -> tuple[Estimates, PolicyPass]:
        """Advantages and returns, from the policy's own log-probabilities and values of what it wrote.

        With one step a pass over the episodes, the pass that these come from is the first one that is learned from,
        too: its graph is kept as far as `micro_batch_tokens` allows, and the ratio of probabilities is exactly 1.
        """
        groups = self.grouping(rollouts.lines)()
        first = self.passes.first(groups, rollouts.is_response, self._graph_tokens(groups))
        estimates = estimate(
            self.args,
            self.steering.kl.coefficient,
            first.log_probs,
            scores.reference,
            first.values,
            first.end_values,
            scores.used,
            rollouts.lengths,
            self.processes.total,
        )
        return estimates, first

    def update(self, rollouts: Rollouts, estimates: Estimates, first: PolicyPass) -> Statistics:
        """Learn from the episodes, `num_ppo_epochs` times."""
        try:
            return self.updater.run(estimates, self.grouping(rollouts.lines), first, self.state.global_step)
        except TrainingError:
            self._restore_last_good()
            raise

    # -- around the steps -----------------------------------------------------------------------------------------

    def _graph_tokens(self, groups: Sequence[Group]) -> int:
        """Padded tokens of which the first pass keeps the graph: in all processes of as many passes."""
        room = self.args.micro_batch_tokens
        if self.args.steps_per_pass > 1 or is_sharded(self.model):
            return 0
        if self.processes.count == 1:
            return room
        # DDP sums gradients in the backward of its latest forward pass, so the pass that is kept must be the only one.
        return room if len(groups) == 1 and self.processes.most(groups[0].tokens) <= room else 0

    def _begin(self, checkpoint: Path | None) -> None:
        args, state = self.args, self.state
        state.global_step = state.episode = 0
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
            state = self.state
        assert args.num_total_batches is not None and args.total_episodes is not None
        state.max_steps = args.num_total_batches
        state.num_train_epochs = args.total_episodes / self.train_dataset_len  # type: ignore[assignment]
        state.compute_steps(args, state.max_steps)
        self.control.should_training_stop = False
        self.order.start = state.global_step
        self.stop_reason = None
        # Dropout is off either way; layers recompute their activations in training mode only.
        self.model.train(bool(args.activation_checkpointing))
        self._started, self._first_episode = time.perf_counter(), state.episode
        self._losses: list[float] = []
        self.control = self.callback_handler.on_train_begin(args, state, self.control)
        self._load_rng_state(None if checkpoint is None else str(checkpoint))

    def _finish_update(self, metrics: dict[str, float], statistics: Statistics) -> None:
        args, state = self.args, self.state
        assert args.batch_size is not None
        state.episode += args.batch_size
        state.global_step += 1
        state.epoch = state.episode / self.train_dataset_len
        metrics |= statistics.means(self.processes) | {"episode": state.episode}
        self._losses.append(metrics["loss/policy_avg"] + args.vf_coef * metrics["loss/value_avg"])
        self.steering.kl.update(metrics["objective/kl"])
        self.log(metrics)
        self.lr_scheduler.step()  # type: ignore[union-attr]
        reason = runaway("the value loss", metrics["loss/value_avg"], args.max_value_loss, "max_value_loss")
        self.control = self.callback_handler.on_step_end(args, state, self.control)
        if reason:
            self._stop(reason)
        elif self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(args, state, self.control)
        if args.num_sample_generations > 0 and (state.global_step - 1) % self.sample_generations_freq == 0:
            self.generate_completions(sampling=True)

    def _end(self) -> TrainOutput:
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        seconds = time.perf_counter() - self._started
        metrics = {"train_runtime": round(seconds, 3), "episodes": float(self.state.episode)}
        loss = sum(self._losses) / max(1, len(self._losses))
        return TrainOutput(self.state.global_step, loss, metrics)

    def _kl_runs_away(self, metrics: dict[str, float]) -> bool:
        """Stop where the policy that wrote these episodes has gone too far; else remember it as the last good one."""
        reason = runaway("the KL divergence to the reference", metrics["objective/kl"], self.args.max_kl, "max_kl")
        if reason:
            self.log(metrics)
            self._stop(reason)
            return True
        if self.is_peft_model:
            self.last_good = snapshot(trained(self.agent))
        return False

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.control.should_training_stop = True
        kept = self._restore_last_good()
        logger.warning("training stopped after update %d: %s; %s", self.state.global_step, reason, kept)

    def _restore_last_good(self) -> str:
        """Put the policy back to where its KL divergence was last in order; says what was done."""
        if self.last_good is None:
            return "the policy stays as it is: there is none from before"
        restore(trained(self.agent), self.last_good)
        return "the policy is the last one whose KL divergence and value loss were in order"

    # -- helpers --------------------------------------------------------------------------------------------------

    def grouping(self, lines: Sequence[Line]) -> Grouping:
        """How these lines go through the model; the last one made is kept, since every step asks for it."""
        if self._grouping is None or self._grouping.lines is not lines:
            tokens, share = self.args.micro_batch_tokens, self.args.share_prefixes
            self._grouping = Grouping(self.agent, lines, tokens, self.processes.most, share)
        return self._grouping

    def _rollouts(self, items: Sequence[PromptItem], responses: Sequence[Sequence[int]]) -> Rollouts:
        return Rollouts.of(items, responses, self.processing_class, self.end_ids, self.accelerator.device)

    def _has_end(self, rollouts: Rollouts) -> Tensor:
        """(episodes,) whether a response has a token that ends it; in TRL's way, an eos token anywhere."""
        eos = [self.processing_class.eos_token_id]  # type: ignore[union-attr]
        ends = set(eos if self.args.trl_compatible else self.end_ids or eos)
        return torch.tensor([bool(ends.intersection(ids)) for ids in rollouts.responses])

    def get_train_dataloader(self) -> DataLoader:
        return self.dataloader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return DataLoader(self.eval_prompts, self.args.per_device_eval_batch_size, collate_fn=list)  # type: ignore[arg-type]
