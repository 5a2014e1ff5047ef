"""Backbones in 4 bit (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): how an adapter's backbone was quantized.

An adapter fits the rounded weights that it was trained on, so its folder records the quantization, and whoever loads
the adapter quantizes its backbone in the same way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.utils import parse_flag_from_env
from torch import nn

from rrm_lm.errors import ConfigError
from rrm_lm.models.pretrained import process_state

_STORAGE = "bnb_4bit_quant_storage"
_ROUNDING = (
    "quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "llm_int8_skip_modules",
)  # fmt: skip


def quantization_of(model: Any) -> dict[str, Any] | None:
    """How a model was quantized while it was loaded, to be written as JSON. None for a model in full precision and for
    a checkpoint that was saved quantized: its own configuration says how.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized:
        return None
    found = quantizer.quantization_config.to_dict()
    return {name: value for name, value in found.items() if not name.startswith("_") and name != _STORAGE}


def is_rounded_alike(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two records (:func:`quantization_of`) round weights alike, in whatever dtype these are computed with."""
    first, second = ({name: (record or {}).get(name) for name in _ROUNDING} for record in (one, other))
    return first == second


def quantized_as(recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize as :func:`quantization_of` says; empty if it is None.

    Raises ConfigError if bitsandbytes is not installed.
    """
    if recorded is None:
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    recorded = dict(recorded)
    if "bnb_4bit_compute_dtype" in recorded:
        require_bitsandbytes("the adapter's quantization")
        recorded[_STORAGE] = storage(str(recorded["bnb_4bit_compute_dtype"]))
    return {"quantization_config": AutoQuantizationConfig.from_dict(recorded), "device_map": on_this_device()}


def storage(dtype: str) -> str:
    """The dtype that 4-bit numbers are stored as, two in a byte: FSDP2 shards only floating-point tensors, and those of
    a layer must have one dtype. It changes no result.
    """
    return dtype if parse_flag_from_env("ACCELERATE_USE_FSDP") else "uint8"


def on_this_device() -> dict[str, str]:
    """A `device_map` that puts all of a model on this process's device."""
    return {"": str(process_state().device)}


def require_bitsandbytes(where: str) -> None:
    """Raise a ConfigError if the package that quantizes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "Loading in 4 or 8 bit needs the package bitsandbytes, which is not installed",
            where=where,
            remedy="pip install 'rrm_lm[quantization]'; or, for an adapter, name its backbone with --base_model: "
            "it is then in full precision, and results differ a little",
        )


def numbers_in(model: nn.Module) -> dict[int, int]:
    """How many numbers each parameter stands for, by its `id`: a 4-bit weight holds several in each of its own."""
    layers: list[Any] = [part for part in model.modules() if isinstance(part, nn.Linear)]
    packed = {
        id(x.weight): x.in_features * x.out_features for x in layers if getattr(x, "quant_state", None) is not None
    }
    return {id(parameter): packed.get(id(parameter), parameter.numel()) for parameter in model.parameters()}


def dequantized(model: Any) -> Any:
    """The model with its rounded weights in full precision; unchanged if it is not quantized."""
    return model if getattr(model, "hf_quantizer", None) is None else model.dequantize()


@contextmanager
def keeping_weights(model: nn.Module) -> Iterator[None]:
    """Restore trained weights that are cast inside: TRL's trainers round those of a quantized model to bfloat16, where
    small updates are lost.
    """
    trained = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in trained.items():
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)
