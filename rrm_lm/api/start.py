"""What training starts from: a LoRA adapter that fits the model, and the longest conversation that does."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from rrm_lm.errors import ConfigError
from rrm_lm.models.backbone import Backbone, evaluating
from rrm_lm.models.lora_targets import expert_parameters, find_fault, misfit
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, read_json
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.models.saving.quantization import numbers_in
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import collate, context_length, share

logger = logging.getLogger(__name__)


def refuse_inside(
    output_dir: str | Path | None, models: Iterable[str | None], data: Iterable[Any] = (), in_place: bool = True
) -> None:
    """Refuse models, backbones of adapters, and data in the output folder: a run deletes or replaces what is there, and
    its results would refer to files that are gone. `in_place`: the output folder may itself be the adapter to train on,
    which is in memory when it is replaced. Raises ConfigError.
    """
    folder = Path(str(output_dir)).expanduser().resolve()
    used = {str(one): Path(one).expanduser() for one in (*models, *data) if isinstance(one, str | Path)}
    for name, path in list(used.items()):
        if (path / ADAPTER_CONFIG).is_file():
            base = str(read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path"))
            used[f"{base}, the backbone of {name}"] = Path(base)
    for name, path in used.items():
        if in_place and path.resolve() == folder and (path / ADAPTER_CONFIG).is_file():
            continue
        if path.exists() and folder in (path.resolve(), *path.resolve().parents):
            what = "The run would replace what it reads, because it is in the output folder"
            raise ConfigError(what, where=name, remedy="choose another --output_dir")


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
        raise misfit(error) from error


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


def put_fresh_adapter(backbone: Backbone, args: ModelArguments, lora: LoraConfig | None = None) -> None:
    """Add a new policy adapter to a backbone. Raises ConfigError if the LoRA settings do not fit the model."""
    with lora_settings(backbone, lora or args.lora()) as settings:
        backbone.add_adapter(POLICY, settings)


def log_sizes(name: str, model: nn.Module) -> None:
    """Log how many parameters a model has, and how many of them are trained."""
    numbers = numbers_in(model)
    total, trained = sum(numbers.values()), sum(numbers[id(p)] for p in model.parameters() if p.requires_grad)
    logger.info("%s: %.1f M parameters, %.2f M trained", name, total / 1e6, trained / 1e6)


def fitted(asked: int | None, backbone: Backbone, reserved: int = 0) -> int | None:
    """The longest conversation in tokens: `asked`, or the model's positions without `reserved` ones if they are fewer.
    None if neither limits it.
    """
    context = context_length(backbone.config)
    if context is None or (asked is not None and asked <= int(context) - reserved):
        return asked
    if asked is not None:
        logger.warning("max_length is %d, not %d: the model has %d positions", context - reserved, asked, context)
    return int(context) - reserved
