"""Convert the arguments of TRL's PPOTrainer to an agent whose roles are separate models instead of adapters."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from trl.experimental.utils import create_reference_model

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.training.ppo.config import PPOConfig

_PAD = 0  # a token id that every model has; padding is masked, so any id works


def agent_from_trl(
    args: PPOConfig, model: Any, ref_model: Any, value_model: Any, peft_config: Any, share: bool = True
) -> AgentModel:
    """Make an agent from the models that TRL's trainer takes.

    Args:
        args: ``model_adapter_name`` and ``ref_adapter_name`` select adapters of a PEFT model.
        model: The policy, a causal language model. It is fully trained unless it has or gets an adapter.
        ref_model: The reference; ``None`` for the policy without its adapter, or a copy of a policy without adapters.
        value_model: A sequence-classification model with one output; ``None`` for a head on the policy.
        peft_config: Configuration of an adapter to add to the policy.

    Raises:
        ConfigError: Contradictory arguments.
        ModelError: A value model without a head of one output.
    """
    if ref_model is model:
        remedy = "pass a copy of the model, or None"
        raise ConfigError("The policy and the reference are the same object", where="ref_model", remedy=remedy)
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise ConfigError(f"peft_config is a {type(peft_config).__name__}", expected="peft.LoraConfig(...)")
    if peft_config is not None and isinstance(model, PeftModel):
        raise ConfigError(
            "The model has an adapter already, and peft_config asks for another",
            where="peft_config",
            remedy="leave out peft_config, or merge the adapter first (merge_and_unload)",
        )
    if ref_model is None and peft_config is None and not isinstance(model, PeftModel):
        ref_model = create_reference_model(model)
    sharing = None if share else False
    adapter = None
    if peft_config is not None:
        backbone, adapter = Backbone(model, _PAD, sharing), args.model_adapter_name or "default"
        backbone.add_adapter(adapter, peft_config)  # type: ignore[arg-type]
    elif isinstance(model, PeftModel):
        adapter = args.model_adapter_name or str(model.active_adapter)
        backbone = Backbone(model, _PAD, sharing)
        backbone.set_trainable(adapter, True)
    else:
        backbone = _trained_backbone(model, sharing)
    return AgentModel(
        backbone,
        policy=adapter,
        value="head" if value_model is None else "model",
        value_model=None if value_model is None else _value_backbone(value_model, sharing),
        reference=None if ref_model is not None else args.ref_adapter_name,
        reference_model=None if ref_model is None else Backbone(ref_model.eval(), _PAD, sharing),
    )


def _value_backbone(model: Any, sharing: bool | None) -> Backbone:
    backbone = _trained_backbone(model, sharing)
    score = getattr(backbone.causal_lm, "score", None)
    if not isinstance(score, nn.Module) or int(backbone.causal_lm.config.num_labels) != 1:
        expected = "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        raise ModelError("The value model has no head of one output", where=type(model).__name__, expected=expected)
    return backbone


def _trained_backbone(model: Any, sharing: bool | None) -> Backbone:
    """Make a backbone, and make the parameters trainable again that were trainable before `Backbone` froze them."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    backbone = Backbone(model, _PAD, sharing)
    for parameter, trains in before.items():
        parameter.requires_grad_(trains)
    return backbone
