"""Sizes of a model, an adapter and a cache, from a configuration alone.

The model and its PEFT adapter are built on the meta device, so no weights are loaded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rrm_lm.errors import ModelError
from rrm_lm.models.pretrained import resolve
from rrm_lm.storage import read_object


@dataclass(frozen=True, slots=True)
class Footprint:
    """Sizes of a model with one LoRA adapter, in bytes unless noted."""

    parameters: int  # number of parameters; tied parameters count once
    weights: int  # the model's weights
    layers: int  # number of layers (blocks)
    block: int  # Weights of the largest block. A sharded model is gathered block by block.
    rest: int  # weights outside the blocks: embedding, final norm, language-model head
    head: int  # weights of the language-model head
    adapter_parameters: int  # number of parameters of one adapter
    adapter: int  # Weights of one adapter. PEFT keeps adapters in float32 even if the model is in half precision.
    cache_token: int  # keys and values of one token, over all layers
    hidden_size: int  # from the configuration


def read_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> tuple[Any, bool]:
    """The configuration of a model, without its weights.

    Args:
        name: A Hub id, the folder of a model or of an adapter (for its base model), a ``config.json``, or an embedded
            model's alias.

    Returns:
        The configuration, and whether the name refers to an adapter.

    Raises:
        ModelError: There is no configuration, or transformers does not support the family.
    """
    path = Path(name).expanduser()
    place, adapter = (str(path), None) if path.is_file() else (resolve(name, revision), _base_of(path))
    if adapter is not None:
        place, revision = resolve(adapter), None
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The model's configuration could not be read ({' '.join(str(error).split())[:300]})",
            where=place,
            expected="a config.json with the model_type of a family that transformers knows",
            remedy="name a Hub id, a model's folder, or its config.json",
        ) from error
    return config, adapter is not None


def _base_of(folder: Path) -> str | None:
    if (folder / "config.json").is_file():
        return None
    return read_object(folder / "adapter_config.json").get("base_model_name_or_path")


def with_layers(config: Any, count: int) -> Any:
    config = copy.deepcopy(config)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:count]
    return config


def model_without_weights(config: Any, dtype: torch.dtype, attention: str | None = None) -> Any:
    """A randomly initialized causal language model on the current default device. Raises ModelError: the family has no
    causal language model.
    """
    try:
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, **({"attn_implementation": attention} if attention else {})
        )
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"No language model can be built from this configuration ({' '.join(str(error).split())[:300]})",
            where=str(getattr(config, "model_type", "")),
            expected="a causal language model that transformers knows",
        ) from error
    return model.eval()


def footprint(config: Any, lora: LoraConfig, dtype: torch.dtype) -> Footprint:
    """Sizes of a model and of one adapter on it. Raises ModelError: the family has no causal language model;
    ValueError: the adapter names layers that the model lacks.
    """
    with torch.device("meta"):
        model = model_without_weights(config, dtype)
        text = model.config.get_text_config()
        kinds = set(model._no_split_modules or ())
        blocks = [_bytes(module) for module in model.modules() if type(module).__name__ in kinds]
        parameters, weights = sum(p.numel() for p in model.parameters()), _bytes(model)
        head = _bytes(model.get_output_embeddings())
        adapted: Any = get_peft_model(model, copy.deepcopy(lora))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return Footprint(
        parameters=parameters,
        weights=weights,
        layers=int(text.num_hidden_layers),
        block=max(blocks, default=weights),
        rest=weights - sum(blocks) if blocks else 0,
        head=head,
        adapter_parameters=sum(p.numel() for p in trained),
        adapter=sum(p.nbytes for p in trained),
        cache_token=2 * int(text.num_hidden_layers) * heads * size * dtype.itemsize,
        hidden_size=int(text.hidden_size),
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
