"""Settings of `rrm-lm plan`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.settings.shared import ModelArguments

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def read_memory(text: str) -> int:
    """Bytes, from a number with a unit.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", str(text))
    unit = found[2].upper() if found else ""
    if found is None or unit not in _UNITS or float(found[1]) == 0:
        raise ConfigError(
            f"{text!r} is no amount of memory",
            where="gpu_memory",
            expected="a number with a unit, such as 80GB (10^9 bytes) or 24GiB (2^30 bytes)",
        )
    return int(float(found[1]) * _UNITS[unit])


@dataclass
class PlannedModelArguments(ModelArguments):
    """The backbone, of which only the configuration is read, and its LoRA adapters."""

    model_name_or_path: str | None = field(
        default="smollm2-135m",
        metadata={"help": "A Hub id, a folder, a config.json, an adapter's folder, or smollm2-135m (embedded)."},
    )
    dtype: str | None = field(default=None, metadata={"help": "Weights of the backbone; unset: bfloat16."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} is set, and no plan can be made for quantised weights",
                    where=name,
                    expected="weights in float32, bfloat16 or float16",
                    remedy="leave it out",
                )


@dataclass
class PlanArguments:
    """What there is to train on, and what is to be trained."""

    num_processes: int = field(default=1, metadata={"help": "Processes, each with a GPU of its own."})
    gpu_memory: str = field(default="80GB", metadata={"help": "Memory of each GPU: 80GB, 24GiB, 16000MB ..."})
    memory_margin: float = field(
        default=0.1,
        metadata={"help": "Share of it that is not planned with: for the driver, NCCL's buffers and fragmentation."},
    )
    prompt_length: int = field(default=512, metadata={"help": "Longest prompt in tokens."})
    response_length: int = field(default=256, metadata={"help": "Longest response in tokens."})
    critique_length: int = field(
        default=0, metadata={"help": "Longest critique in tokens, for reward models that learn to write them."}
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Pairs (reward model) or episodes (PPO) of a step on each process."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "So many times that in a step."})
    samples_per_prompt: int = field(default=1, metadata={"help": "PPO: episodes with the same prompt."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "PPO: how many times each episode is learned from."})
    num_mini_batches: int = field(default=1, metadata={"help": "PPO: optimizer steps in each pass over them."})
    value_function: str = field(default="head", metadata={"help": "PPO: head, or adapter (LoRA weights of its own)."})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass; unset: where it is needed."}
    )
    json: bool = field(default=False, metadata={"help": "Print the plan for a program to read."})

    def __post_init__(self) -> None:
        for name in ("num_processes", "per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected="at least 1")
        if not 0 <= self.memory_margin < 1:
            raise ConfigError(
                f"memory_margin is {self.memory_margin}", where="memory_margin", expected="at least 0 and below 1"
            )
        self.memory = read_memory(self.gpu_memory)
        self.room = self.memory * (1 - self.memory_margin)

    def job(self, reference_adapter: bool) -> Any:
        """What is to be trained, for `rrm_lm.planning.planning`."""
        from rrm_lm.planning.planning import Job

        return Job(
            prompt_length=self.prompt_length,
            response_length=self.response_length,
            critique_length=self.critique_length,
            batch=self.per_device_train_batch_size * self.gradient_accumulation_steps,
            samples_per_prompt=self.samples_per_prompt,
            num_ppo_epochs=self.num_ppo_epochs,
            num_mini_batches=self.num_mini_batches,
            value_function=self.value_function,
            reference_adapter=reference_adapter,
            activation_checkpointing=self.activation_checkpointing,
        )
