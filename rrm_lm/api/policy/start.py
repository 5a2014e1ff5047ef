"""The starting model or policy, and the agent that PPO trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig

from rrm_lm.api.lora import lora_settings
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy_start import check_family
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_sequence_classifier, resolve
from rrm_lm.models.saving.adapters import recorded_date
from rrm_lm.models.saving.policies import Policy, PolicySettings, load_policy
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardArguments

logger = logging.getLogger(__name__)


def check_start(folder: Path, model: ModelArguments, rewards: RewardArguments, config: PolicyConfig) -> None:
    """Refuse unknown models, and models in the output folder: the run would overwrite them, and resuming needs them.
    Raises ConfigError: a model is in the output folder, or there is a value model but `value_function` is not "model";
    ModelError: there is no such model.
    """
    names = [str(model.model_name_or_path), *rewards.reward_model, *filter(None, [rewards.value_model])]
    for name in names:
        path = Path(resolve(name))
        if path.is_dir() and path.resolve() == folder.resolve():
            what = "The model to start from, or a reward, is in the output folder, which the run would write over"
            raise ConfigError(what, where=name, remedy="choose another --output_dir")
    if rewards.value_model is not None and config.value_function != "model":
        what = f"There is a value_model, and value_function is {config.value_function}"
        raise ConfigError(what, where="value_model", remedy="pass --value_function model, or leave out value_model")


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
    check_family(policy.backbone)
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
    trained = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    total = sum(p.numel() for p in agent.parameters())
    logger.info("%s: %.1f M parameters, %.2f M trained", name, total / 1e6, trained / 1e6)
    return agent


def _value_model(policy: Policy, args: ModelArguments, name: str | None) -> Backbone:
    """A sequence-classification model; all of its weights are trained."""
    start = policy.settings or PolicySettings(str(args.model_name_or_path))
    given = name or start.base_model
    model: Any = load_sequence_classifier(
        given,
        num_labels=None if name else 1,
        revision=None if name else start.revision,
        dtype=args.dtype,
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
