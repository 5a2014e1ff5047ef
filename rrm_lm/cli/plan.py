"""`rrm-lm plan`: on paper, before anything is rented: what training takes on each process, and what fits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.settings.shared import ModelArguments

EXAMPLES = """\
examples:
  rrm-lm plan --model_name_or_path Qwen/Qwen3-8B --num_processes 8 --gpu_memory 80GB
  rrm-lm plan --model_name_or_path path/to/config.json --num_processes 16 --gpu_memory 48GiB --response_length 512
  rrm-lm plan --num_processes 2 --gpu_memory 24GB --dtype float32 --json
"""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


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


def run(argv: list[str]) -> int:
    """Print what fits, then where the memory goes and what is sent.

    Raises:
        ConfigError: Settings that make no sense, or nothing fits: what would have to change.
        ModelError: There is no such model, or none that can be planned for.
    """
    from rrm_lm.settings.parser import parse

    model, args = parse([PlannedModelArguments, PlanArguments], argv, command="rrm-lm plan", examples=EXAMPLES)
    from rrm_lm.models.pretrained import to_dtype
    from rrm_lm.planning.footprint import read_config
    from rrm_lm.planning.page import Page, as_json
    from rrm_lm.planning.planning import measure, plan, recommended
    from rrm_lm.storage import json_text

    name = str(model.model_name_or_path)
    config, is_adapter = read_config(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    dtype: Any = to_dtype(model.dtype if model.dtype not in (None, "auto") else "bfloat16")
    job = args.job(is_adapter)
    # Other implementations take no mask for each pair of tokens; what they keep is what SDPA keeps.
    masked = model.attn_implementation in (None, "sdpa", "eager")
    measured = measure(
        config, model.lora(), dtype, job, attention=model.attn_implementation if masked else "sdpa", share=masked
    )
    choices = plan(args.num_processes, args.room, measured, job)
    if args.json:
        print(json_text(as_json(name, dtype, args, measured, job, choices)))
    else:
        Page(name, dtype, model.lora_r, args, measured, job, choices).print()
    _refuse(args, measured, job, [task for task in ("reward", "ppo") if recommended(choices, task) is None])
    return 0


def _refuse(args: PlanArguments, measured: Any, job: Any, tasks: list[str]) -> None:
    """Say what would have to change for what does not fit."""
    if not tasks:
        return
    from rrm_lm.planning.planning import TASKS, remedy
    from rrm_lm.planning.strategies import STRATEGIES

    task = tasks[0]  # of two that do not fit, the smaller
    found = remedy(task, args.num_processes, args.room, measured, job)
    bigger = (
        f"GPUs of {found.memory / (1 - args.memory_margin) / 1e9:.1f} GB with {STRATEGIES[found.strategy]} "
        f"on {args.num_processes} process{'es' if args.num_processes > 1 else ''}"
    )
    more = f"{found.processes} processes with FSDP2, " if found.processes else ""
    raise ConfigError(
        f"{' and '.join(TASKS[name] for name in tasks)} cannot be trained on {args.num_processes} x {args.gpu_memory}"
        " under any strategy",
        where=f"gpu_memory {args.gpu_memory}, of which {args.room / 1e9:.1f} GB are planned with",
        remedy=f"the least that is enough: {more}or {bigger}; or shorter prompts and responses, or a smaller model",
    )
