"""Model FLOP utilization: operations that training needs, relative to those that the GPUs could do.

A product of a token with N weights takes 2 N operations forward and 2 N backward to its input; frozen weights need no
others. Only the layers' weights are counted: no attention over tokens, embeddings, heads, adapters or recomputation, so
that the share is a little too low.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from rrm_lm.models.saving.quantization import numbers_in

# Dense operations per second in bfloat16, by a part of the device's name, from the makers' data sheets.
_PEAKS = {
    "B200": 2250e12,
    "MI300X": 1307e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

TRAINED = 4  # operations per weight and token: forward and backward
FORWARD = 2


def peak(device: torch.device) -> float | None:
    """Operations per second that a device can do in bfloat16; None for one that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name:  # a part of the device
        return None
    return next((found for part, found in _PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def layer_weights(decoder: Any) -> int:
    """Number of frozen weights in the layers of a language model, without its head."""
    own = {id(parameter) for parameter in decoder.get_input_embeddings().parameters()}
    named, numbers = decoder.named_parameters(), numbers_in(decoder)
    return sum(numbers[id(p)] for name, p in named if ".lora_" not in name and id(p) not in own and p.ndim > 1)


def utilization(decoder: Any, per_weight: float, seconds: float, device: torch.device) -> dict[str, float]:
    """The metric ``mfu`` of this process; empty for unknown devices. `per_weight` is the number of operations that were
    needed with each weight of the layers in these seconds.
    """
    most = peak(device)
    if most is None or seconds <= 0:
        return {}
    return {"mfu": round(per_weight * layer_weights(decoder) / (seconds * most), 4)}
