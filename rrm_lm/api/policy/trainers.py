"""The starting model or policy, and the trainer of an algorithm: PPO, or TRL's RLOO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rrm_lm.api.output_run import trainer_settings
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy.lines import UpdateLines
from rrm_lm.api.policy.rewards import Rewards
from rrm_lm.api.policy.saving import check_before_training
from rrm_lm.api.start import log_sizes, lora_settings, put_fresh_adapter, refuse_inside
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.pretrained import load_sequence_classifier, resolve
from rrm_lm.models.saving.adapters import recorded_date
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings, load_policy
from rrm_lm.models.together import loading_together
from rrm_lm.planning.planning import Job
from rrm_lm.planning.sizing import fit_sizes
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardArguments
from rrm_lm.training.ppo.trainer import PPOTrainer

logger = logging.getLogger(__name__)


def check_start(folder: Path, model: ModelArguments, rewards: RewardArguments, config: PolicyConfig) -> None:
    """Refuse unknown models, models in the output folder, and a value model that has no effect. Raises ConfigError, and
    ModelError if there is no such model.
    """
    models = [model.model_name_or_path, *rewards.reward_model, rewards.value_model]
    refuse_inside(folder, models, in_place=False)
    for name in filter(None, models):
        resolve(name)
    if rewards.value_model is not None and config.value_function != "model":
        what = f"There is a value_model, and value_function is {config.value_function}"
        raise ConfigError(what, where="value_model", remedy="pass --value_function model, or leave out value_model")


@loading_together()
def load_start(
    args: ModelArguments, stop: int | None, loaded: Policy | None = None, rewards: Sequence[str] = ()
) -> Policy:
    """Load the model or policy that training starts from.

    `stop` is the id of a token that ends responses, and `loaded` a policy that is already loaded. If the policy has no
    date, the chat template writes the date of the training of the reward models named in `rewards`. Raises ConfigError:
    the model has no such token; ModelError: no such model, or one that does not generate text.
    """
    name, options = str(args.model_name_or_path), args.tokenizing()
    dates = (recorded_date(resolve(one)) for one in (name, *rewards))
    options["chat_date"] = args.chat_date or next(filter(None, dates), None)
    policy = loaded or load_policy(name, trainable=True, **options, **args.loading())
    if loaded is not None and policy.adapter is not None:
        policy.backbone.set_trainable(policy.adapter, True)
    check_logits(policy.backbone)
    if stop is not None and not 0 <= stop < len(policy.chat.tokenizer):
        raise ConfigError(
            f"There is no token {stop}", where="stop_token_id", expected=f"0 to {len(policy.chat.tokenizer) - 1}"
        )
    return policy


def make_agent(
    policy: Policy,
    args: ModelArguments,
    config: PolicyConfig,
    rewards: RewardArguments,
    lora: LoraConfig | None = None,
) -> AgentModel:
    """Policy, value function and reference on one backbone. Raises ConfigError: LoRA settings that do not fit the
    model; ModelError: a value model that does not fit the policy.
    """
    value_model = _value_model(policy, args, rewards.value_model) if config.value_function == "model" else None
    name = str(args.model_name_or_path)
    if policy.adapter is not None:
        logger.info("%s is an adapter, which is trained on: its own LoRA settings hold", name)
    with lora_settings(policy.backbone, lora or args.lora()) as settings:
        agent = AgentModel.create(
            policy.backbone,
            settings,
            value=config.value_function,
            value_model=value_model,
            reference=config.reference,
        )
    log_sizes(name, agent)
    return agent


@loading_together()
def _value_model(policy: Policy, args: ModelArguments, name: str | None) -> Backbone:
    """A sequence-classification model; all of its weights are trained."""
    start = policy.settings or PolicySettings(str(args.model_name_or_path))
    given = name or start.base_model
    model: Any = load_sequence_classifier(
        given,
        num_labels=None if name else 1,
        revision=None if name else start.revision,
        dtype="float32",  # all of it is trained, and steps of a learning rate are too small for bfloat16 weights
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
    )
    head = getattr(model, "score", None)
    vocabulary, needed = int(model.config.vocab_size), len(policy.chat.tokenizer)
    wrong = ""
    if head is None or int(model.config.num_labels) != 1:
        wrong = f"The value model has {model.config.num_labels} outputs" if head is not None else "It has no score head"
    elif vocabulary < needed:
        wrong = f"The value model knows {vocabulary} tokens, and the policy writes {needed}"
    if wrong:
        raise ModelError(
            wrong,
            where=given,
            expected="a sequence-classification model with one output that reads the policy's tokens",
            remedy="name another --value_model, or leave it out for the policy's own model with a new head",
        )
    backbone = Backbone(model, policy.backbone.pad_id)
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    return backbone


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
    fit_sizes(config, "ppo", agent.backbone, _lora_of(policy), lambda: job_of(parts))
    trainer = PPOTrainer(
        config,
        chat.tokenizer,
        agent,
        train_dataset=parts.prompts,
        rewards=rewards.others(),
        chat=chat,
        settings=parts.settings,
    )
    # The order and names of the settings: the trainer puts the reward on the policy's backbone first.
    trainer.rewards = rewards.sum(trainer.rewards.sources[0], config.reward_weights)
    rewards.shard(trainer.accelerator)
    trainer.choose_gathering()  # there is more room now
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
    fit_sizes(config, "ppo", backbone, _lora_of(policy), lambda: job_of(parts))
    own = None if rewards.own is None else AdapterReward(rewards.own, micro_batch_tokens=config.micro_batch_tokens)
    trainer = RLOOTrainer(
        policy,
        config,
        rewards.sum(own, config.reward_weights),
        parts.prompts,
        policy.chat,
        settings=parts.settings,
    )
    rewards.shard(trainer.accelerator)
    return Training(trainer, policy, trainer.reference_adapter, trainer.steps_per_update)


def _lora_of(policy: Policy) -> LoraConfig:
    """The configuration of the policy's adapter."""
    return policy.backbone.model.peft_config[policy.adapter]


def job_of(parts: Parts) -> Job:
    """What an update takes, for :func:`rrm_lm.planning.sizing.fit_sizes`. Raises ModelError for a value model, whose
    memory is not planned.
    """
    config, chat = parts.config, parts.policy.chat
    if config.value_function == "model":
        raise ModelError("A value model is trained, whose memory is not planned")
    return Job(
        prompt_length=max(len(chat.prompt_ids(prompt)) for prompt in parts.prompts),
        response_length=config.response_length,
        batch=config.per_device_train_batch_size * config.gradient_accumulation_steps,
        samples_per_prompt=config.samples_per_prompt,
        num_ppo_epochs=config.num_ppo_epochs,
        num_mini_batches=config.num_mini_batches,
        value_function=config.value_function,
        reference_adapter=parts.policy.adapter is not None,
    )
