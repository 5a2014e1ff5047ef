"""Builds the trainer of an algorithm: PPO, or TRL's RLOO."""

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
from rrm_lm.api.policy_saving import check_before_training
from rrm_lm.api.policy_start import put_fresh_adapter
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardArguments
from rrm_lm.training.ppo.trainer import PPOTrainer


class Training(NamedTuple):
    """A trainer and the policy that it trains."""

    trainer: Any  # has `train`, `save_whole`, `rewards`, `end_ids` and `stop_reason`
    policy: Policy
    reference: str | None  # the reference adapter of the KL divergence; None for the bare backbone
    steps_per_update: int  # trainer steps per update


@dataclass(frozen=True)
class Parts:
    """The inputs of a trainer."""

    policy: Policy  # the policy to start from, with the chat format of the prompts
    prompts: Sequence[Prompt]
    config: PolicyConfig
    model: ModelArguments
    rewards: RewardArguments
    put_rewards: Callable[[Backbone], Rewards]  # loads the rewards; one of them may share the given backbone
    settings: PolicySettings  # settings saved with the policy
    lora: LoraConfig | None = None  # the LoRA configuration, in place of that of the settings


def make_training(algorithm: str, parts: Parts) -> Training:
    """Build the trainer of an algorithm; it logs a line per update. Raises ConfigError: settings that the algorithm
    does not support; RRMError: rewards or prompts that cannot be used.
    """
    make = {"ppo": _ppo, "rloo": _rloo}[algorithm]
    with trainer_settings(f"Hugging Face's Trainer and of {algorithm.upper()}"):
        made = make(parts)
    for bar in (PrinterCallback, ProgressCallback):
        made.trainer.remove_callback(bar)
    made.trainer.add_callback(UpdateLines(made.steps_per_update))
    return made


def _ppo(parts: Parts) -> Training:
    chat, config = parts.policy.chat, parts.config
    agent = make_agent(parts.policy, parts.model, config, parts.rewards, parts.lora)
    policy = parts.policy._replace(adapter=agent.policy_adapter)
    check_before_training(policy, config, parts.model)
    rewards = parts.put_rewards(agent.backbone)
    if rewards.own is not None:
        agent.add_reward(rewards.own)
    trainer = PPOTrainer(
        config,
        chat.tokenizer,
        agent,
        train_dataset=parts.prompts,
        rewards=list(rewards.sources.values()),
        chat=chat,
        settings=parts.settings,
    )
    # Restore the order of the settings: the trainer puts the reward on the policy's backbone first.
    trainer.rewards = rewards.sum(trainer.rewards.sources[0], config.reward_weights)
    return Training(trainer, policy, agent.reference_adapter, 1)


def _rloo(parts: Parts) -> Training:
    from rrm_lm.training.reward_sources import AdapterReward
    from rrm_lm.training.rloo.trainer import RLOOTrainer

    backbone, config, policy = parts.policy.backbone, parts.config, parts.policy
    if policy.adapter is None:
        put_fresh_adapter(backbone, parts.model, parts.lora)
        policy = policy._replace(adapter=POLICY)
    check_before_training(policy, config, parts.model)
    rewards = parts.put_rewards(backbone)
    own = None if rewards.own is None else AdapterReward(rewards.own, micro_batch_tokens=config.micro_batch_tokens)
    trainer = RLOOTrainer(
        policy,
        config,
        rewards.sum(own, config.reward_weights),
        parts.prompts,
        policy.chat,
        settings=parts.settings,
    )
    return Training(trainer, policy, trainer.reference_adapter, trainer.steps_per_update)
