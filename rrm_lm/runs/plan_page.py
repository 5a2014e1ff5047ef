"""The page that `rrm-lm plan` prints: what fits first, then where the memory goes and what is sent."""

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
    """Bytes as a number of GB (10^9 bytes), with as many digits as matter."""
    value = count / 1e9
    if count == 0:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


@dataclass(frozen=True)
class Page:
    """A plan for a person.

    Attributes:
        name: Of the model.
        dtype: Of its weights.
        rank: Of its adapters.
        args: What was asked.
        measured: What is known of the model.
        job: What is to be trained.
        choices: What was found.
    """

    name: str
    dtype: Any
    rank: int
    args: PlanArguments
    measured: Measured
    job: Job
    choices: Sequence[Choice]

    def print(self) -> None:
        """Print it to stdout."""
        console = Console(highlight=False)
        console.print(self._heading())
        console.print(self._fitting())
        for task in TASKS:
            console.print(self._advice(task), soft_wrap=True)
        console.print()
        console.print(self._parts())
        if self.args.num_processes > 1:
            console.print()
            console.print(self._received())
        console.print()
        for note in self._notes():
            console.print(Text(note, "dim"))

    def _heading(self) -> Text:
        sizes, args, job = self.measured.sizes, self.args, self.job
        precision = str(self.dtype).removeprefix("torch.")
        text = (
            Text()
            .append(_short(self.name), "bold")
            .append(
                f": {_count(sizes.parameters)} parameters, {gigabytes(sizes.weights)} GB in {precision}\n"
                f"LoRA of rank {self.rank}: {_count(sizes.adapter_parameters)} parameters, "
                f"{gigabytes(sizes.adapter)} GB an adapter; cache: {sizes.cache_token / 1e6:.2g} MB a token\n"
                f"{args.num_processes} x {args.gpu_memory}; {gigabytes(args.room)} GB of each are planned with\n"
            )
        )
        return text.append(
            f"{job.batch} pairs or episodes a process and step; prompts up to {job.prompt_length} tokens, "
            f"responses {job.response_length}\n"
        )

    # -- tables ---------------------------------------------------------------------------------------------------

    def _fitting(self) -> Table:
        headings = ("reward\nGB", "micro_batch\n_tokens", "PPO\nGB", "micro_batch\n_tokens", "rollout_batch\n_tokens")
        table = _table("what fits", headings)
        for strategy in self._strategies():
            reward, ppo = (self._choice(task, strategy) for task in TASKS)
            table.add_row(STRATEGIES[strategy], *_cells(reward), *_cells(ppo), _rollout(ppo))
        for lora in (False, True):
            peak = trl_memory(self.measured.sizes, self.job, lora).peak()
            fits = peak <= self.args.room
            label = f"TRL's PPO{', LoRA' if lora else ''}"
            table.add_row(
                label, "", "", _verdict(f">{gigabytes(peak)}", fits), _verdict("" if fits else "no ", fits), ""
            )
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
        text = Text().append("use ", "dim").append(STRATEGIES[best.strategy], "bold green")
        return text.append(f" for {_COMMANDS[task]}: {' '.join(flags)}")

    def _parts(self) -> Table:
        headings = ("weights", "gathered", "LoRA", "grads", "Adam", "activ.", "rollout")
        table = _table("GB on a process", headings)
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

    def _received(self) -> Table:
        headings = ("reward\nLoRA", "\nweights", "PPO\nLoRA", "learning\nweights", "rollout\nweights")
        table = _table("GB received a step", headings)
        for strategy in self._strategies():
            if strategy != "single":
                reward, ppo = (self._choice(task, strategy).traffic for task in TASKS)
                parts = (reward.trained, reward.learning, ppo.trained, ppo.learning, ppo.rollout)
                table.add_row(STRATEGIES[strategy], *map(gigabytes, parts))
        return table

    # -- what the tables do not say ---------------------------------------------------------------------------------

    def _notes(self) -> list[str]:
        notes = []
        if any(choice.activation_checkpointing for choice in self.choices):
            notes.append("* with --activation_checkpointing true")
        offloaded = self._choice("ppo", "fsdp2_offload")
        notes.append(
            f"Offloaded, PPO: {gigabytes(offloaded.memory.host)} GB a process lie in the computer's memory, and "
            f"{gigabytes(offloaded.traffic.host)} GB a step come from there."
        )
        sharded = [choice for choice in self.choices if choice.task == "ppo" and choice.strategy in SHARDED]
        if not all(choice.gather_for_generation for choice in sharded):
            notes.append(
                "Rollouts of a sharded model gather it once a step where it fits as a whole. Elsewhere they gather it "
                "layer by layer for every token (--ds3_gather_for_generation false): the network decides how long."
            )
        over = [trl_memory(self.measured.sizes, self.job, lora).peak(self.args.num_processes) for lora in (False, True)]
        notes.append(
            "TRL's PPO: weights, gradients, Adam and stacked logits of its models, without activations; divided by "
            f"ZeRO-3: >{gigabytes(over[0])} GB a process, >{gigabytes(over[1])} with LoRA."
        )
        notes.append("Checked against training on CPUs, not on GPUs. ZeRO has DeepSpeed's default buffers.")
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


def _verdict(text: str, fits: bool) -> Text:
    return Text(text, "green" if fits else "red")


def _cells(choice: Choice) -> list[Text]:
    """The memory, and the micro-batch where it fits."""
    mark = "*" if choice.activation_checkpointing else " "
    tokens = f"{choice.micro_batch_tokens}{mark}" if choice.fits else "no "
    return [_verdict(gigabytes(choice.memory.peak), choice.fits), _verdict(tokens, choice.fits)]


def _rollout(choice: Choice) -> Text:
    return Text(str(choice.rollout_batch_tokens) if choice.fits else "")


def as_json(
    name: str, dtype: torch.dtype, args: PlanArguments, measured: Measured, job: Job, choices: Sequence[Choice]
) -> dict[str, Any]:
    """The same plan for a program. Sizes are bytes."""
    best = {task: recommended(choices, task) for task in TASKS}
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "num_processes": args.num_processes,
        "gpu_memory": args.memory,
        "planned_with": round(args.room),
        "job": asdict(job),
        "sizes": asdict(measured.sizes),
        "recommended": {task: None if choice is None else choice.strategy for task, choice in best.items()},
        "choices": [choice.to_dict() for choice in choices],
        "trl": [trl_memory(measured.sizes, job, lora).to_dict(args.num_processes) for lora in (False, True)],
    }


def _short(name: str) -> str:
    """A Hub id or alias as it is; of a path, the model's folder."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return (path.resolve().parent if path.is_file() else path.resolve()).name


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
