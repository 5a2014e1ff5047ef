"""The layers that LoRA adapts: the default ones, and what is wrong with named ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from rrm_lm.errors import ConfigError

_ROUTERS = {"router", "gate", "shared_expert_gate"}  # parts of their names
# PEFT options that change more than low-rank terms; they would also change the backbone without adapters.
_UNSUPPORTED = ("modules_to_save", "trainable_token_indices", "layer_replication")
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initializations that also change the weights


def decoder_of(model: Any) -> Any:
    """The language model without its head, and without the parts of a multimodal model that read something else."""
    decoder = model.get_decoder()
    return decoder if decoder is not model else model.model  # Llama 4 names its parts differently


def default_targets(model: Any, config: LoraConfig) -> set[str]:
    """All linear layers except the language-model head, routers, and layers whose names mean experts to PEFT: in
    families with fused experts, it takes the `gate_proj` of any layer for the experts' parameter.
    """
    modules = {name: module for name, module in model.named_modules() if ".base_layer" not in name}
    inside = set(decoder_of(model).modules())  # text does not reach the other towers of a multimodal model
    routers = _ROUTERS if any("experts" in name.split(".") for name in modules) else set()
    probe: Any = copy.deepcopy(config)
    probe.target_modules = set()
    for name, module in modules.items():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        linear = isinstance(base, (nn.Linear, Conv1D)) and ".lora_" not in name and module in inside
        if linear and base is not model.get_output_embeddings() and routers.isdisjoint(name.split(".")):
            probe.target_modules.add(name)
    convert_peft_config_for_transformers(probe, model, None)
    return probe.target_modules


def unsupported(config: dict[str, Any]) -> list[str]:
    """Settings of a LoRA adapter that change more than LoRA layers."""
    extra = [name for name in _UNSUPPORTED if config.get(name)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_WEIGHTS):
        extra.append(f"init_lora_weights {start}")
    return extra + ([f"bias {config['bias']}"] if config.get("bias", "none") != "none" else [])


def expert_parameters(model: Any) -> list[str]:
    """The fused weights of experts, as names for PEFT's `target_parameters`; empty without experts."""
    found = {}
    for name, module in model.named_modules():
        path = name.replace(".base_layer", "").split(".")
        if "experts" in path and not isinstance(module, (nn.Linear, BaseTunerLayer)):
            own = [key for key, value in module.named_parameters(recurse=False) if value.ndim > 1 and "bias" not in key]
            found |= dict.fromkeys(f"{path[-1]}.{key}" for key in own)
    return list(found)


def misfit(error: Exception) -> ConfigError:
    """The error of a user whose LoRA settings PEFT or the model refuses with `error`."""
    return ConfigError(
        f"LoRA with these settings cannot be put on this model: {error}",
        where="lora_r, lora_alpha, lora_dropout, lora_target_modules, lora_target_parameters",
        remedy="leave out --lora_target_modules to adapt all linear layers",
    )


def find_fault(model: Any, config: LoraConfig, adapted: Sequence[str]) -> None:
    """Raise a ValueError if an adapter, on the layers and parameters `adapted`, cannot be trained or saved."""
    if extra := unsupported(config.to_dict()):
        raise ValueError(f"more than LoRA layers would change ({', '.join(extra)})")
    for named in (config.target_modules, config.target_parameters):
        listed = [] if isinstance(named, str) else sorted(named or ())
        missing = [one for one in listed if not any(f".{name}".endswith(f".{one}") for name in adapted)]
        if missing:
            raise ValueError(f"it has no layer named {', '.join(missing)}")
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise ValueError("its embeddings are tied to its head, and LoRA on one of them would be merged into both")
