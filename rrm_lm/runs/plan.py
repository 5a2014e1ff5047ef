"""`rrm-lm plan`: what fits on each GPU, memory by component, and communication, as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_lm.errors import ConfigError
from rrm_lm.models.pretrained import to_dtype
from rrm_lm.planning.footprint import read_config
from rrm_lm.planning.planning import TASKS, Choice, Job, Measured, measure, plan, recommended, remedy
from rrm_lm.planning.strategies import SHARDED, STRATEGIES
from rrm_lm.settings.plan import PlanArguments, PlannedModelArguments
from rrm_lm.storage import json_text

_COMMANDS = {"reward": "rrm-lm reward", "ppo": "rrm-lm policy"}


def plan_training(model: PlannedModelArguments, args: PlanArguments) -> None:
    """Print what fits, then memory and communication by component. Raises ConfigError: a setting is invalid, or nothing
    fits (the message says what would); ModelError: there is no such model, or it cannot be planned for.
    """
    name = str(model.model_name_or_path)
    config, is_adapter = read_config(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    dtype: Any = to_dtype(model.dtype if model.dtype not in (None, "auto") else "bfloat16")
    job = args.job(is_adapter)
    # Other implementations support no mask per token pair; they keep the same activations as SDPA.
    masked = model.attn_implementation in (None, "sdpa", "eager")
    attention = model.attn_implementation if masked else "sdpa"
    measured = measure(config, model.lora(), dtype, job, attention=attention, share=masked)
    choices = plan(args.num_processes, args.room, measured, job)
    page = PlanPage(name, dtype, model.lora_r, args, measured, job, choices)
    if args.json:
        print(json_text(page.to_dict()))
    else:
        page.print()
    if refused := [task for task in TASKS if recommended(choices, task) is None]:
        raise _refusal(args, measured, job, refused)


def _refusal(args: PlanArguments, measured: Measured, job: Job, tasks: list[str]) -> ConfigError:
    """The error for tasks that do not fit; it says what would fit."""
    found = remedy(tasks[0], args.num_processes, args.room, measured, job)  # of the smaller task
    bigger = (
        f"GPUs of {found.memory / (1 - args.memory_margin) / 1e9:.1f} GB with {STRATEGIES[found.strategy]} "
        f"on {args.num_processes} process{'es' if args.num_processes > 1 else ''}"
    )
    more = f"{found.processes} processes with FSDP2, " if found.processes else ""
    return ConfigError(
        f"{' and '.join(TASKS[name] for name in tasks)} cannot be trained on {args.num_processes} x {args.gpu_memory}"
        " under any strategy",
        where=f"gpu_memory {args.gpu_memory}, of which {args.room / 1e9:.1f} GB may be used",
        remedy=f"use at least {more}or {bigger}; or shorter prompts and responses, or a smaller model",
    )


def gigabytes(count: float) -> str:
    """Bytes in GB (10^9 bytes), with more digits for small numbers."""
    value = count / 1e9
    if count == 0:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


@dataclass(frozen=True)
class PlanPage:
    """A plan, which people read as tables and programs as JSON."""

    name: str  # the model's name
    dtype: Any  # data type of the weights
    rank: int  # LoRA rank
    args: PlanArguments  # the settings
    measured: Measured  # sizes of the model
    job: Job  # the training job
    choices: Sequence[Choice]  # one plan per task and strategy

    def print(self) -> None:
        console = Console(highlight=False)
        console.print(self._heading())
        console.print(self._fit_table())
        for task in TASKS:
            console.print(self._advice(task), soft_wrap=True)
        console.print()
        console.print(self._memory_table())
        if self.args.num_processes > 1:
            console.print()
            console.print(self._traffic_table())
        console.print()
        for note in self._notes():
            console.print(Text(note, "dim"))

    def to_dict(self) -> dict[str, Any]:
        """The same plan for programs to read. Sizes are in bytes."""
        return {
            "model": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "num_processes": self.args.num_processes,
            "gpu_memory": self.args.memory,
            "planned_with": round(self.args.room),
            "job": asdict(self.job),
            "sizes": asdict(self.measured.sizes),
            "recommended": {t: best and best.strategy for t in TASKS for best in [recommended(self.choices, t)]},
            "choices": [choice.to_dict() for choice in self.choices],
        }

    def _heading(self) -> Text:
        sizes, args, job, dtype = self.measured.sizes, self.args, self.job, str(self.dtype).removeprefix("torch.")
        return Text.assemble(
            (_short_name(self.name), "bold"),
            f": {_count(sizes.parameters)} parameters, {gigabytes(sizes.weights)} GB in {dtype}\n"
            f"LoRA rank {self.rank}: {_count(sizes.adapter_parameters)} parameters, {gigabytes(sizes.adapter)} GB "
            f"per adapter; KV cache: {sizes.cache_token / 1e6:.2g} MB per token\n"
            f"{args.num_processes} x {args.gpu_memory}, of which {gigabytes(args.room)} GB each are used for the plan\n"
            f"{job.batch} pairs or episodes per process and step; prompts up to {job.prompt_length} tokens, "
            f"responses {job.response_length}\n",
        )

    def _fit_table(self) -> Table:
        headings = ("reward\nGB", "micro_batch\n_tokens", "PPO\nGB", "micro_batch\n_tokens", "rollout_batch\n_tokens")
        table = _table("what fits", headings)
        for strategy in self._strategies():
            reward, ppo = (self._choice(task, strategy) for task in TASKS)
            rollout = Text(str(ppo.rollout_batch_tokens) if ppo.fits else "")
            table.add_row(STRATEGIES[strategy], *_memory_cells(reward), *_memory_cells(ppo), rollout)
        return table

    def _advice(self, task: str) -> Text:
        best = recommended(self.choices, task)
        if best is None:
            return Text(f"{TASKS[task]}: nothing fits", "red")
        flags = [f"--micro_batch_tokens {best.micro_batch_tokens}"]
        if best.rollout_batch_tokens:
            flags.append(f"--rollout_batch_tokens {best.rollout_batch_tokens}")
        if best.activation_checkpointing:
            flags.append("--activation_checkpointing true")
        if task == "ppo" and best.strategy in SHARDED and not best.gather_for_generation:
            flags.append("--ds3_gather_for_generation false")
        strategy = (STRATEGIES[best.strategy], "bold green")
        return Text.assemble(("use ", "dim"), strategy, f" for {_COMMANDS[task]}: {' '.join(flags)}")

    def _memory_table(self) -> Table:
        table = _table("GB per process", ("weights", "gathered", "LoRA", "grads", "Adam", "activ.", "rollout"))
        for task, title in TASKS.items():
            table.add_row(Text(title, "bold"))
            for strategy in self._strategies():
                choice = self._choice(task, strategy)
                memory = choice.memory
                parts = (
                    memory.weights, memory.gathered, memory.adapters, memory.gradients, memory.optimizer,
                    memory.activations, memory.rollout,
                )  # fmt: skip
                style = "" if choice.fits else "dim"
                table.add_row(f" {STRATEGIES[strategy]}", *map(gigabytes, parts), style=style)
        return table

    def _traffic_table(self) -> Table:
        headings = ("reward\nLoRA", "\nweights", "PPO\nLoRA", "learning\nweights", "rollout\nweights")
        table = _table("GB received per step", headings)
        for strategy in self._strategies():
            if strategy != "single":
                reward, ppo = (self._choice(task, strategy).traffic for task in TASKS)
                parts = (reward.trained, reward.learning, ppo.trained, ppo.learning, ppo.rollout)
                table.add_row(STRATEGIES[strategy], *map(gigabytes, parts))
        return table

    def _notes(self) -> list[str]:
        notes = []
        if any(choice.activation_checkpointing for choice in self.choices):
            notes.append("* with --activation_checkpointing true")
        offloaded = self._choice("ppo", "fsdp2_offload")
        notes.append(
            f"PPO with offloading keeps {gigabytes(offloaded.memory.host)} GB per process in host memory and reads "
            f"{gigabytes(offloaded.traffic.host)} GB per step from it."
        )
        sharded = [choice for choice in self.choices if choice.task == "ppo" and choice.strategy in SHARDED]
        if not all(choice.gather_for_generation for choice in sharded):
            notes.append(
                "Rollouts of a sharded model gather it once per step if the full model fits. Otherwise they gather it "
                "layer by layer for every token (--ds3_gather_for_generation false), at the speed of the network."
            )
        notes.append("--compile_layers true fuses operations, so that fewer activations are held; this is not counted.")
        notes.append("Checked against training on CPUs, not on GPUs. ZeRO uses DeepSpeed's default buffer sizes.")
        return notes

    def _strategies(self) -> list[str]:
        return list(dict.fromkeys(choice.strategy for choice in self.choices))

    def _choice(self, task: str, strategy: str) -> Choice:
        return next(choice for choice in self.choices if (choice.task, choice.strategy) == (task, strategy))


def _table(corner: str, headings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column(corner, no_wrap=True, min_width=18, header_style="bold", vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, header_style="dim", vertical="bottom")
    return table


def _memory_cells(choice: Choice) -> list[Text]:
    """Peak memory, and the micro-batch if it fits."""
    mark = "*" if choice.activation_checkpointing else " "
    tokens = f"{choice.micro_batch_tokens}{mark}" if choice.fits else "no "
    return [Text(text, "green" if choice.fits else "red") for text in (gigabytes(choice.memory.peak), tokens)]


def _short_name(name: str) -> str:
    """A Hub id or alias unchanged; for a path, the folder's name."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return (path.resolve().parent if path.is_file() else path.resolve()).name


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
