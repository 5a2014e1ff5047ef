"""`rrm-lm plan`: estimate the memory of training on each GPU, and what fits, before renting any."""

from __future__ import annotations

from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.settings.plan import PlanArguments, PlannedModelArguments

EXAMPLES = """\
rrm-lm plan --num_processes 2 --gpu_memory 24GB --dtype float32
rrm-lm plan --model_name_or_path Qwen/Qwen3-8B --num_processes 8
rrm-lm plan --model_name_or_path path/to/config.json --num_processes 16 --json
"""
COMMON = (
    "model_name_or_path dtype lora_r num_processes gpu_memory memory_margin prompt_length response_length "
    "critique_length per_device_train_batch_size gradient_accumulation_steps samples_per_prompt value_function "
    "activation_checkpointing json"
)


def run(argv: list[str]) -> int:
    """Print what fits, then memory and communication by component.

    Raises:
        ConfigError: A setting is invalid, or nothing fits; the message says what would.
        ModelError: There is no such model, or it cannot be planned for.
    """
    from rrm_lm.settings.parser import parse

    kinds = [PlannedModelArguments, PlanArguments]
    model, args = parse(kinds, argv, command="rrm-lm plan", examples=EXAMPLES, common=COMMON)
    from rrm_lm.models.pretrained import to_dtype
    from rrm_lm.planning.footprint import read_config
    from rrm_lm.planning.planning import measure, plan, recommended
    from rrm_lm.runs.plan_page import PlanPage, plan_as_json
    from rrm_lm.storage import json_text

    name = str(model.model_name_or_path)
    config, is_adapter = read_config(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    dtype: Any = to_dtype(model.dtype if model.dtype not in (None, "auto") else "bfloat16")
    job = args.job(is_adapter)
    # Other implementations support no mask per token pair; they keep the same activations as SDPA.
    masked = model.attn_implementation in (None, "sdpa", "eager")
    measured = measure(
        config, model.lora(), dtype, job, attention=model.attn_implementation if masked else "sdpa", share=masked
    )
    choices = plan(args.num_processes, args.room, measured, job)
    if args.json:
        print(json_text(plan_as_json(name, dtype, args, measured, job, choices)))
    else:
        PlanPage(name, dtype, model.lora_r, args, measured, job, choices).print()
    _refuse(args, measured, job, [task for task in ("reward", "ppo") if recommended(choices, task) is None])
    return 0


def _refuse(args: PlanArguments, measured: Any, job: Any, tasks: list[str]) -> None:
    """Raise a ConfigError for tasks that do not fit; it says what would fit."""
    if not tasks:
        return
    from rrm_lm.planning.planning import TASKS, remedy
    from rrm_lm.planning.strategies import STRATEGIES

    task = tasks[0]  # the smaller one
    found = remedy(task, args.num_processes, args.room, measured, job)
    bigger = (
        f"GPUs of {found.memory / (1 - args.memory_margin) / 1e9:.1f} GB with {STRATEGIES[found.strategy]} "
        f"on {args.num_processes} process{'es' if args.num_processes > 1 else ''}"
    )
    more = f"{found.processes} processes with FSDP2, " if found.processes else ""
    raise ConfigError(
        f"{' and '.join(TASKS[name] for name in tasks)} cannot be trained on {args.num_processes} x {args.gpu_memory}"
        " under any strategy",
        where=f"gpu_memory {args.gpu_memory}, of which {args.room / 1e9:.1f} GB may be used",
        remedy=f"use at least {more}or {bigger}; or shorter prompts and responses, or a smaller model",
    )
