"""Checks of a new LoRA adapter before it is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig

from rrm_lm.errors import ConfigError
from rrm_lm.models.backbone import Backbone, evaluating
from rrm_lm.models.lora_targets import expert_parameters, find_fault
from rrm_lm.text.batching import collate, share

logger = logging.getLogger(__name__)


@contextmanager
def lora_settings(backbone: Backbone, lora: LoraConfig, is_new: bool = True) -> Iterator[LoraConfig]:
    """Refuse settings that do not fit the model. Adapters with the yielded settings are added inside. Settings of an
    existing adapter (`is_new` is False) only have to fit. Raises ConfigError if PEFT refuses them, named layers do not
    exist, or the model cannot run or be saved with them.
    """
    try:
        yield lora
        names = [name for name, config in getattr(backbone.model, "peft_config", {}).items() if config is lora]
        if is_new and names:
            _check(backbone, names[0], lora)
    except (ValueError, AttributeError, TypeError) as error:  # the last two: of model code that a LoRA layer breaks
        raise ConfigError(
            f"LoRA with these settings cannot be put on this model: {error}",
            where="lora_r, lora_alpha, lora_dropout, lora_target_modules, lora_target_parameters",
            remedy="leave out --lora_target_modules to adapt all linear layers",
        ) from error


@torch.no_grad()
def _check(backbone: Backbone, adapter: str, lora: LoraConfig) -> None:
    """Raise a ValueError if an adapter is at fault, or what the model raises with it; log what it does to experts."""
    tuner = backbone.model.base_model
    names = [*tuner.targeted_module_names, *tuner.targeted_parameter_names]
    find_fault(backbone.causal_lm, lora, names)
    with evaluating(backbone):
        backbone(collate([share([(1, 2, 3)])], backbone.pad_id).to(backbone.device), adapter)
    experts = expert_parameters(backbone.causal_lm)
    others = [target for target in experts if not any(name.endswith(target) for name in names)]
    if experts:
        logger.info(
            "mixture of experts: LoRA adapts %s; the rest is frozen, and no load-balancing loss is added by default%s",
            ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names})),
            f" (--lora_target_parameters {' '.join(others)} adapts the experts, too)" if others else "",
        )
