"""PPO on one shared backbone: roll out, score, estimate advantages, update.

A subclass of TRL's PPOTrainer. Settings, arguments, callbacks, logged metrics and losses are TRL's; tests check that
they are equal on fixed rollouts (``tests/unit/training/ppo/test_equivalence.py``). :mod:`rrm_lm.training.ppo.estimates`
lists where the defaults differ. The training loop is ours: one root module instead of four models, shared prefixes
computed once, resumable checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from trl.experimental.ppo import PPOTrainer as _TrlPPOTrainer

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.agent import AgentModel, disable_dropout
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.models.sharding import is_sharded
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.arguments import TOKENS, set_sizes
from rrm_lm.training.ppo.agent_trainer import AgentTrainer
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.control import out_of_bounds
from rrm_lm.training.ppo.engines import make_engine
from rrm_lm.training.ppo.estimates import Estimates, estimate, importance_weights
from rrm_lm.training.ppo.passes import OwnReward, PolicyPass
from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.reports import EpisodeScores, Progress, Stopwatch, episode_metrics, mismatch_metrics
from rrm_lm.training.ppo.rollouts import Group, Grouping, Rollouts, end_id
from rrm_lm.training.ppo.trl import agent_from_trl
from rrm_lm.training.ppo.update import UpdateStatistics
from rrm_lm.training.reward_sources import ClassifierOnTokens, RewardSource, RewardSum, TokenRewardSource
from rrm_lm.training.speed import FORWARD, TRAINED, utilization

logger = logging.getLogger(__name__)


class PPOTrainer(AgentTrainer, _TrlPPOTrainer):
    """Trains an agent's policy with PPO.

    Args:
        args: Settings. TRL's own PPOConfig selects TRL's conventions.
        processing_class: The tokenizer.
        model: An :class:`AgentModel`; or, as in TRL, the policy's language model, with the following arguments.
        ref_model, reward_model, value_model, peft_config: As in TRL; not used with an agent.
        train_dataset: Prompts as messages, or rows with ``input_ids`` as in TRL.
        data_collator: Makes ``input_ids`` and ``attention_mask`` for rows that lack them.
        optimizers, callbacks, eval_dataset: As in TRL; no samples of an evaluation set are shown.
        rewards: Reward sources in addition to ``reward_model``; optional for an agent with its own reward.
        chat: The chat format, for prompts as messages.
        settings: Saved with the policy.
    """

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
        set_sizes(args, TOKENS)
        if train_dataset is None:
            raise ConfigError("There are no prompts to train on", where="train_dataset")
        models = {"ref_model": ref_model, "value_model": value_model, "peft_config": peft_config}
        if not isinstance(model, AgentModel):
            model = agent_from_trl(args, model, **models, share=args.share_prefixes)
        elif given := [name for name, value in models.items() if value is not None]:
            raise ConfigError(f"An agent has its own {', '.join(given)}", remedy="make the agent with it")
        self.agent: AgentModel = model
        disable_dropout(model)
        # Trainer has a property here and TRL a field, which is read during DeepSpeed's setup.
        args.world_size = process_state().num_processes
        # Trainer's __init__, not TRL's: it sets up accelerators, wrapping and sharding, and does not change the model.
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
        self.settings = settings or PolicySettings(str(model.backbone.causal_lm.name_or_path), method="ppo")
        self.keep_names_of_trl(ref_model, reward_model)
        self.prepare_prompts(chat, data_collator)
        self.stop_token_id = end_id(args, processing_class, chat)
        self.end_ids = [] if self.stop_token_id is None else [self.stop_token_id]
        self.sampling = Sampling(args.response_length, args.temperature, args.top_p, args.top_k)
        self.prepare_model()
        self.engine = make_engine(args, model, self.settings, self.accelerator)
        self._grouping: Grouping | None = None
        self._has_warned = False
        sources: list[Any] = []
        if model.has_reward:
            sources.append(OwnReward(self.passes, self.grouping, model.reward.settings.combination))
        if reward_model is not None:
            sources.append(ClassifierOnTokens(reward_model))
            disable_dropout(reward_model.to(self.accelerator.device))
        self.rewards = RewardSum([*sources, *rewards], args.reward_weights)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:  # type: ignore[override]
        """Sample, score, estimate advantages and update, until all episodes are done or training is stopped.

        Raises TrainingError: a reward or a server for rollouts failed, the server's probabilities are not the policy's,
        or a loss is not finite; the policy is that of before the update. CheckpointError: the checkpoint is broken or
        does not fit the agent.
        """
        self._begin(self.checkpoint_to_resume(resume_from_checkpoint))
        try:
            self._update_until_done()
        finally:
            self.engine.release()
        return self._end()

    def _update_until_done(self) -> None:
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
            eos_id: int = self.processing_class.eos_token_id  # type: ignore[union-attr, assignment]
            coefficient = self.steering.kl.coefficient
            metrics = episode_metrics(rollouts, scores, estimates, eos_id, coefficient, self.processes)
            metrics |= self._compare_engines(rollouts, estimates)
            if self._kl_is_out_of_bounds(metrics):
                break
            with watch("update"):
                statistics = self.update(rollouts, estimates, first)
            tokens = float(self.processes.total(rollouts.lengths.sum()))
            episodes = self.state.episode + (self.args.batch_size or 0)
            speed = self._progress.speed(watch, tokens, episodes) | self._utilization(rollouts, watch)
            self._finish_update(metrics | speed, statistics)

    def roll_out(self, items: Sequence[PromptItem]) -> Rollouts:
        """Sample `samples_per_prompt` responses to each prompt."""
        args, count = self.args, self.args.samples_per_prompt
        try:
            self.engine.refresh(self.state.global_step)
            # Samples depend on the seed and the prompt's index in the update, not on the process.
            sampled = self.engine.sample(
                [item.ids for item in items],
                self.sampling,
                end_ids=self.end_ids,
                num_return=count,
                seed=args.seed * 1_000_003 + self.state.global_step,
                first=self.accelerator.process_index * len(items),
            )
        except TrainingError:
            self._save_before_failing()
            raise
        episodes = [item for item in items for _ in range(count)]
        known = sampled.log_probs
        served = None if known is None else [numbers for samples in known for numbers in samples]
        responses = [ids for samples in sampled.ids for ids in samples]
        device = self.accelerator.device
        rollouts = Rollouts.of(episodes, responses, self.processing_class, self.end_ids, device, served)
        if self.end_ids and not any(rollouts.finished) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "no response has ended within %d tokens: raise response_length, set missing_eos_penalty, or check "
                "whether the model writes the token %s",
                args.response_length,
                self.end_ids[0],
            )
        return rollouts

    def score(self, rollouts: Rollouts) -> EpisodeScores:
        """Compute rewards, and log-probabilities under the reference."""
        device = self.accelerator.device
        by_source = self.rewards([item.prompt for item in rollouts.items], rollouts.texts, rollouts.lines)
        raw = torch.tensor(self.rewards.total(by_source), device=device)
        if self.args.missing_eos_penalty is not None:
            # With TRL's conventions, an eos token anywhere ends a response.
            eos = [self.processing_class.eos_token_id]  # type: ignore[union-attr]
            ends = set(eos if self.args.trl_compatible else self.end_ids or eos)
            unfinished = [not ends.intersection(ids) for ids in rollouts.responses]
            raw = raw - self.args.missing_eos_penalty * torch.tensor(unfinished, device=device)
        used = raw
        if self.args.normalize_rewards:
            self.steering.scale.add(raw, self.processes.total)
            used = self.steering.scale(used)
        if self.args.reward_clip is not None:
            used = used.clamp(-self.args.reward_clip, self.args.reward_clip)
        reference = self.passes.reference(self.grouping(rollouts.lines)(), rollouts.is_response)
        return EpisodeScores(by_source, raw, used, reference)

    def estimate(self, rollouts: Rollouts, scores: EpisodeScores) -> tuple[Estimates, PolicyPass]:
        """Compute advantages and returns from the policy's log-probabilities and values.

        With one step per epoch, the first step trains on the pass that produced these. Its graph is kept as far as
        `micro_batch_tokens` allows, and the probability ratio is exactly 1.
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
        cap = self.args.rollout_importance_cap
        if cap is not None and rollouts.served is not None:
            estimates.importance = importance_weights(first.log_probs, rollouts.served, cap)
        return estimates, first

    def update(self, rollouts: Rollouts, estimates: Estimates, first: PolicyPass) -> UpdateStatistics:
        try:
            return self.updater.run(estimates, self.grouping(rollouts.lines), first, self.state.global_step)
        except TrainingError:
            self.optimizer.zero_grad()
            self.last_good.put_back()
            raise

    # -- around the steps ---------------------------------------------------------------------------------------------

    def _utilization(self, rollouts: Rollouts, watch: Stopwatch) -> dict[str, float]:
        """Of an update: sampling, reference, reward on this backbone, first pass, and training in each epoch, for every
        token of every conversation.
        """
        each = FORWARD * (3 + self.agent.has_reward) + TRAINED * self.args.num_ppo_epochs
        tokens = sum(len(line.ids) for line in rollouts.lines)
        seconds = sum(watch.seconds.values())
        return utilization(self.agent.backbone.decoder, each * tokens, seconds, self.accelerator.device)

    def _graph_tokens(self, groups: Sequence[Group]) -> int:
        """Padded tokens whose graph the first pass keeps; all processes must keep the same groups."""
        budget = self.args.micro_batch_tokens
        if self.args.steps_per_pass > 1 or is_sharded(self.model):
            return 0
        if self.processes.count == 1:
            return budget
        # DDP sums gradients in the backward pass of its latest forward pass, so the kept pass must be the only one.
        return budget if len(groups) == 1 and self.processes.max(groups[0].tokens) <= budget else 0

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
        # Dropout is off in both modes; activation checkpointing only works in training mode.
        self.model.train(bool(args.activation_checkpointing))
        self._progress = Progress(state.episode)
        self.control = self.callback_handler.on_train_begin(args, state, self.control)
        self._load_rng_state(None if checkpoint is None else str(checkpoint))

    def _finish_update(self, metrics: dict[str, float], statistics: UpdateStatistics) -> None:
        args, state = self.args, self.state
        assert args.batch_size is not None
        state.episode += args.batch_size
        state.global_step += 1
        state.epoch = state.episode / self.train_dataset_len
        metrics |= statistics.means(self.processes) | {"episode": state.episode}
        metrics["lr"] = float(self.lr_scheduler.get_last_lr()[0])
        if norms := self.updater.gradient_norms:
            metrics["policy/grad_norm"] = sum(norms) / len(norms)
        self._progress.losses.append(metrics["loss/policy_avg"] + args.vf_coef * metrics["loss/value_avg"])
        self.steering.kl.update(metrics["objective/kl"])
        self.log(metrics)
        self.lr_scheduler.step()
        reason = out_of_bounds("the value loss", metrics["loss/value_avg"], args.max_value_loss, "max_value_loss")
        self.control = self.callback_handler.on_step_end(args, state, self.control)
        if reason:
            self._stop(reason)
        elif self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(args, state, self.control)

    def _end(self) -> TrainOutput:
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        metrics = {"train_runtime": round(self._progress.seconds, 3), "episodes": float(self.state.episode)}
        return TrainOutput(self.state.global_step, self._progress.mean_loss, metrics)

    def _kl_is_out_of_bounds(self, metrics: dict[str, float]) -> bool:
        """Stop if the policy that sampled these episodes has moved too far; else keep it as the last good one."""
        reason = out_of_bounds(
            "the KL divergence to the reference", metrics["objective/kl"], self.args.max_kl, "max_kl"
        )
        if reason:
            self.log(metrics)
            self._stop(reason)
        elif self.is_peft_model:
            self.last_good.keep()
        return reason is not None

    def _compare_engines(self, rollouts: Rollouts, estimates: Estimates) -> dict[str, float]:
        """Metrics of how far the server's probabilities are from the trainer's; none without a server. Raises
        TrainingError if they are too far, before the update.
        """
        if rollouts.served is None:
            return {}
        found = mismatch_metrics(estimates.log_probs, rollouts.served, rollouts.is_response, self.processes)
        name, most = "the KL divergence of the server's token probabilities", self.args.max_rollout_mismatch
        reason = out_of_bounds(name, found["rollout/kl"], most, "max_rollout_mismatch")
        if reason:
            self.log(found)
            raise TrainingError(
                f"{reason} (in nats per token; mean ratio {found['rollout/ratio_mean']:.4g}, largest "
                f"{found['rollout/ratio_max']:.4g}): the server does not sample from the policy that is trained",
                where=f"update {self.state.global_step + 1}, {self.args.rollout_url}",
                expected="the trainer's probabilities, up to the rounding of two programs",
                remedy="serve the same model in the same dtype, unquantized, with --logprobs-mode processed_logprobs; "
                "or pass --rollout_importance_cap 2 and a higher --max_rollout_mismatch",
            )
        return found

    def _save_before_failing(self) -> None:
        """Save a checkpoint of the updates since the last one. Called where nothing of the next update is done yet."""
        step = self.state.global_step
        saved = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if step and self.args.save_strategy != "no" and not saved.is_dir():
            self._save_checkpoint(self.model, trial=None)

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.control.should_training_stop = True
        outcome = self.last_good.put_back()
        logger.warning("training stopped after update %d: %s; %s", self.state.global_step, reason, outcome)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def grouping(self, lines: Sequence[Line]) -> Grouping:
        """The groups of these lines, cached because every phase of an update needs them."""
        if self._grouping is None or self._grouping.lines is not lines:
            tokens, share = self.args.micro_batch_tokens, self.args.share_prefixes
            self._grouping = Grouping(self.agent, lines, tokens, self.processes.max, share)
        return self._grouping
