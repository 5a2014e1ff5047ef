"""A trainer for each algorithm, made of the same parts: PPO, and TRL's RLOO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from peft import LoraConfig
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rrm_lm.api.output_run import trainer_settings
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy.lines import UpdateLines
from rrm_lm.api.policy.rewards import Rewards
from rrm_lm.api.policy.start import make_agent
from rrm_lm.api.policy_start import put_fresh_adapter
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardArguments
from rrm_lm.training.ppo.trainer import PPOTrainer


class Training(NamedTuple):
    """A trainer, and where to find what it trains.

    Attributes:
        trainer: Has ``train``, ``save_whole``, ``rewards``, ``end_ids`` and ``stop_reason``.
        policy: What it trains.
        reference: The adapter that the KL divergence is from; None for the bare backbone.
        steps_per_update: How many of the steps that it counts make an update.
    """

    trainer: Any
    policy: Policy
    reference: str | None
    steps_per_update: int


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of.

    Attributes:
        policy: What training starts from, with the chat format that prompts are written in.
        prompts: To learn on.
        heldout: To show answers to during training.
        config, model, rewards: Settings.
        put_rewards: Loads the rewards, and puts one on a backbone if it can be there.
        settings: Saved with the policy.
        lora: The adapter's configuration, instead of that of the settings.
    """

    policy: Policy
    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt]
    config: PolicyConfig
    model: ModelArguments
    rewards: RewardArguments
    put_rewards: Callable[[Backbone], Rewards]
    settings: PolicySettings
    lora: LoraConfig | None = None


def make_training(algorithm: str, parts: Parts) -> Training:
    """A trainer whose progress is told in a line for each update.

    Raises:
        ConfigError: Settings that it cannot keep.
        RRMError: Rewards or prompts that cannot be used.
    """
    make = {"ppo": _ppo, "rloo": _rloo}[algorithm]
    with trainer_settings(f"Hugging Face's Trainer and of {algorithm.upper()}"):
        made = make(parts)
    for bar in (PrinterCallback, ProgressCallback):
        made.trainer.remove_callback(bar)
    made.trainer.add_callback(UpdateLines(made.steps_per_update))
    return made


class _Trainer(PPOTrainer):
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL's draft names no model, and would be written anew beside every checkpoint."""


def _ppo(parts: Parts) -> Training:
    chat, config = parts.policy.chat, parts.config
    agent = make_agent(parts.policy, parts.model, config, parts.rewards, parts.lora)
    rewards = parts.put_rewards(agent.backbone)
    if rewards.own is not None:
        agent.add_reward(rewards.own)
    trainer = _Trainer(
        config,
        chat.tokenizer,
        agent,
        train_dataset=parts.prompts,
        eval_dataset=parts.heldout or None,
        rewards=list(rewards.sources.values()),
        chat=chat,
        settings=parts.settings,
    )
    # Again, in the order of the settings: the trainer puts the reward on the policy's own backbone first.
    trainer.rewards = rewards.sum(trainer.rewards.sources[0], config.reward_weights)
    policy = parts.policy._replace(adapter=agent.policy_adapter)
    return Training(trainer, policy, agent.reference_adapter, 1)


def _rloo(parts: Parts) -> Training:
    from rrm_lm.training.reward_sources import AdapterReward
    from rrm_lm.training.rloo.trainer import rloo_trainer

    backbone, config, policy = parts.policy.backbone, parts.config, parts.policy
    if policy.adapter is None:
        put_fresh_adapter(backbone, parts.model, parts.lora)
        policy = policy._replace(adapter=POLICY)
    rewards = parts.put_rewards(backbone)
    own = None if rewards.own is None else AdapterReward(rewards.own, micro_batch_tokens=config.micro_batch_tokens)
    trainer = rloo_trainer(
        policy,
        config,
        rewards.sum(own, config.reward_weights),
        parts.prompts,
        policy.chat,
        settings=parts.settings,
    )
    return Training(trainer, policy, trainer.reference_adapter, trainer.steps_per_update)
