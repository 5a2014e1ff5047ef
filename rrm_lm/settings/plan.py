"""Settings of `rrm-lm plan`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, check_minimum, option
from rrm_lm.settings.models import ModelArguments

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def read_memory(text: str) -> int:
    """Bytes, from a number with a unit. Raises ConfigError: the text is not a number above 0 with a known unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", str(text))
    unit = found[2].upper() if found else ""
    if found is None or unit not in _UNITS or float(found[1]) == 0:
        expected = "a number with a unit, such as 80GB (10^9 bytes) or 24GiB (2^30 bytes)"
        raise ConfigError(f"{text!r} is not an amount of memory", where="gpu_memory", expected=expected)
    return int(float(found[1]) * _UNITS[unit])


@dataclass
class PlannedModelArguments(ModelArguments):
    """The backbone, of which only the configuration is read, and its LoRA adapters."""

    model_name_or_path: str | None = option(
        "smollm2-135m", "A Hub id, a folder, a config.json, an adapter's folder, or smollm2-135m (embedded)."
    )
    dtype: str | None = option(None, "Data type of the backbone's weights. Unset: bfloat16.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, name):
                what = f"{name} is set, but quantized weights cannot be planned for"
                raise ConfigError(what, where=name, expected="float32 or 16-bit weights", remedy="leave it out")


@dataclass
class PlanArguments:
    """The hardware, and what is trained on it."""

    num_processes: int = option(1, "Number of processes, each with its own GPU.")
    gpu_memory: str = option("80GB", "Memory of each GPU: 80GB, 24GiB, 16000MB ...")
    memory_margin: float = option(0.1, "Share of it to leave free: for the driver, NCCL's buffers and fragmentation.")
    prompt_length: int = option(512, "Longest prompt in tokens.")
    response_length: int = option(256, "Longest response in tokens.")
    critique_length: int = option(0, "Longest critique in tokens, for reward models that learn to write critiques.")
    per_device_train_batch_size: int = option(8, "Pairs (reward model) or episodes (PPO) per step and process.")
    gradient_accumulation_steps: int = option(1, "Batches per optimizer step.")
    samples_per_prompt: int = option(1, "PPO: episodes with the same prompt.")
    num_ppo_epochs: int = option(4, "PPO: passes over the episodes of an update.")
    num_mini_batches: int = option(1, "PPO: optimizer steps per pass.")
    value_function: str = option("head", "PPO: head, or adapter (its own LoRA weights).")
    activation_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass. Unset: only if needed."
    )
    json: bool = option(False, "Print the plan as JSON.")

    def __post_init__(self) -> None:
        check_minimum(self, num_processes=1, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        check(self, ("memory_margin", 0 <= self.memory_margin < 1, "at least 0 and below 1"))
        self.memory = read_memory(self.gpu_memory)
        self.room = self.memory * (1 - self.memory_margin)

    def job(self, reference_adapter: bool) -> Any:
        """What is to be trained, for `rrm_lm.planning.planning`."""
        from rrm_lm.planning.planning import Job

        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        same = {field.name: getattr(self, field.name) for field in fields(Job) if hasattr(self, field.name)}
        return Job(batch=batch, reference_adapter=reference_adapter, **same)
