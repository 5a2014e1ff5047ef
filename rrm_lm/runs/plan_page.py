"""Output of `rrm-lm plan`, as text or JSON: what fits, memory by component, and communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_lm.planning.planning import TASKS, Choice, Job, Measured, recommended, trl_memory
from rrm_lm.planning.strategies import SHARDED, STRATEGIES
from rrm_lm.settings.plan import PlanArguments

_COMMANDS = {"reward": "rrm-lm reward", "ppo": "rrm-lm policy"}


def gigabytes(count: float) -> str:
    """Bytes in GB (10^9 bytes), with more digits for small numbers."""
    value = count / 1e9
    if count == 0:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


@dataclass(frozen=True)
class PlanPage:
    """A plan for people to read."""

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
        for lora in (False, True):
            peak = trl_memory(self.measured.sizes, self.job, lora).peak()
            fits = peak <= self.args.room
            verdict = (_colored(f">{gigabytes(peak)}", fits), _colored("" if fits else "no ", fits))
            table.add_row(f"TRL's PPO{', LoRA' if lora else ''}", "", "", *verdict, "")
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
        peaks = [
            trl_memory(self.measured.sizes, self.job, lora).peak(self.args.num_processes) for lora in (False, True)
        ]
        notes.append(
            "TRL's PPO: weights, gradients, Adam states and stacked logits of its models, without activations; sharded "
            f"with ZeRO-3: >{gigabytes(peaks[0])} GB per process, >{gigabytes(peaks[1])} with LoRA."
        )
        notes.append("Checked against training on CPUs, not on GPUs. ZeRO uses DeepSpeed's default buffer sizes.")
        return notes

    def _strategies(self) -> list[str]:
        return list(dict.fromkeys(choice.strategy for choice in self.choices))

    def _choice(self, task: str, strategy: str) -> Choice:
        return next(choice for choice in self.choices if (choice.task, choice.strategy) == (task, strategy))


def plan_as_json(
    name: str, dtype: torch.dtype, args: PlanArguments, measured: Measured, job: Job, choices: Sequence[Choice]
) -> dict[str, Any]:
    """The same plan for programs to read. Sizes are in bytes."""
    best = {task: choice and choice.strategy for task in TASKS for choice in [recommended(choices, task)]}
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "num_processes": args.num_processes,
        "gpu_memory": args.memory,
        "planned_with": round(args.room),
        "job": asdict(job),
        "sizes": asdict(measured.sizes),
        "recommended": best,
        "choices": [choice.to_dict() for choice in choices],
        "trl": [trl_memory(measured.sizes, job, lora).to_dict(args.num_processes) for lora in (False, True)],
    }


def _table(corner: str, headings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column(corner, no_wrap=True, min_width=18, header_style="bold", vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, header_style="dim", vertical="bottom")
    return table


def _colored(text: str, fits: bool) -> Text:
    return Text(text, "green" if fits else "red")


def _memory_cells(choice: Choice) -> list[Text]:
    """Peak memory, and the micro-batch if it fits."""
    mark = "*" if choice.activation_checkpointing else " "
    tokens = f"{choice.micro_batch_tokens}{mark}" if choice.fits else "no "
    return [_colored(gigabytes(choice.memory.peak), choice.fits), _colored(tokens, choice.fits)]


def _short_name(name: str) -> str:
    """A Hub id or alias unchanged; for a path, the folder's name."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return (path.resolve().parent if path.is_file() else path.resolve()).name


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
