"""Plan reward-model training and PPO: memory and communication per process, what fits, and which batch to use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import LoraConfig

from rrm_lm.errors import ConfigError
from rrm_lm.models.lora_targets import misfit
from rrm_lm.options import check, check_minimum
from rrm_lm.planning.footprint import Footprint, footprint
from rrm_lm.planning.peak_memory import Peak, RowShape, Tracer
from rrm_lm.planning.strategies import (
    SHARDED,
    STRATEGIES,
    Memory,
    Passes,
    Traffic,
    Trained,
    gathered_model,
    static_memory,
    traffic,
)

TASKS = {"reward": "reward model", "ppo": "PPO"}
_BUSY = 2048  # micro-batch tokens that keep a device busy; recomputing activations for larger ones does not pay off
_LARGEST = 65536  # larger micro-batches gain nothing
_MOST_PROCESSES = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """The training to plan. Lengths are maximum lengths in tokens, because these determine peak memory."""

    # prompt_length, response_length, critique_length: of each example; a critique length of 0 means none
    prompt_length: int = 512
    response_length: int = 256
    critique_length: int = 0
    batch: int = 8  # pairs or episodes per step on each process
    # samples_per_prompt, num_ppo_epochs, num_mini_batches: as in PPO's settings
    samples_per_prompt: int = 1
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    value_function: str = "head"  # `head` or `adapter`
    reference_adapter: bool = False  # whether PPO starts from an adapter, whose frozen copy is then the reference
    # whether layers recompute their activations; `None` for only where needed
    activation_checkpointing: bool | None = None

    def __post_init__(self) -> None:
        positive = ("prompt_length", "response_length", "batch", "samples_per_prompt", "num_ppo_epochs")
        check_minimum(self, **dict.fromkeys(positive, 1), critique_length=0)
        for name in ("samples_per_prompt", "num_mini_batches"):
            if getattr(self, name) < 1 or self.batch % getattr(self, name):
                raise ConfigError(
                    f"{self.batch} episodes per process cannot be divided by {getattr(self, name)}",
                    where=name,
                    expected="a divisor of per_device_train_batch_size * gradient_accumulation_steps",
                )
        check(self, ("value_function", self.value_function in ("head", "adapter"), "head or adapter"))

    @property
    def pair(self) -> RowShape:  # a row of reward-model training
        return RowShape(self.prompt_length, self.response_length, 2, self.critique_length)

    @property
    def family(self) -> RowShape:  # a row of PPO: a prompt and its samples
        return RowShape(self.prompt_length, self.response_length, self.samples_per_prompt)

    @property
    def episode(self) -> RowShape:  # a row of a rollout
        return RowShape(self.prompt_length, self.response_length)

    def rows(self, task: str) -> int:
        return self.batch if task == "reward" else self.batch // self.samples_per_prompt


@dataclass(frozen=True)
class Measured:
    """A model's sizes and the peak memory of its passes. Peaks are traced on first use."""

    sizes: Footprint  # sizes of the model and one adapter
    # whether to try without activation checkpointing, with it, or both in this order
    checkpointing_options: tuple[bool, ...]
    peak: Callable[..., Peak]  # (task, checkpointing): peak memory of a task's passes; task ``rollout`` is sampling


def measure(
    config: Any, lora: LoraConfig, dtype: torch.dtype, job: Job, *, attention: str | None = None, share: bool = True
) -> Measured:
    """Measure a model from its configuration.

    `share`: whether lines share prefixes; False for implementations that do not support it. Raises ModelError: the
    configuration is not that of a dense causal language model; ConfigError: the adapter does not fit the model.
    """
    try:
        sizes = footprint(config, lora, dtype)
    except ValueError as error:
        raise misfit(error) from error
    tracer = Tracer(config, lora, dtype, attention=attention, value=job.value_function, share=share)
    options = (False, True) if job.activation_checkpointing is None else (job.activation_checkpointing,)

    @functools.cache
    def peak(task: str, checkpointing: bool = False) -> Peak:
        if task == "rollout":
            return tracer.rollout(job.episode)
        if task == "reward":
            return tracer.reward(job.pair, checkpointing)
        return tracer.policy(job.family, checkpointing)

    return Measured(sizes, options, peak)


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings for one task under one strategy."""

    task: str
    strategy: str
    fits: bool
    # activation_checkpointing, micro_batch_tokens, rollout_batch_tokens: The settings to use; if the task does not fit,
    # those with the least memory. `rollout_batch_tokens` is 0 without rollouts.
    activation_checkpointing: bool
    micro_batch_tokens: int
    rollout_batch_tokens: int
    gather_for_generation: bool  # Whether the full model is gathered for rollouts, i.e. whether it fits.
    memory: Memory  # peak memory with these settings
    traffic: Traffic  # communication per step with these settings
    passes: Passes  # passes per step

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": self.memory.to_dict(), "traffic": self.traffic.to_dict()}


def choose(task: str, strategy: str, processes: int, budget: float, measured: Measured, job: Job) -> Choice:
    """Choose the largest batch of a task (``reward`` or ``ppo``) that fits into `budget` bytes per device under one of
    :data:`rrm_lm.planning.strategies.STRATEGIES`.
    """
    processes = 1 if strategy == "single" else processes
    trained = trained_bytes(task, measured.sizes, job)
    static = static_memory(strategy, processes, measured.sizes, trained)
    free = budget - static.static
    checkpointing, rows = _training_rows(measured, task, free, job.rows(task))
    rollout, samples, gathered = None, 0, 0
    if task == "ppo":
        rollout = measured.peak("rollout")
        gathered = gathered_model(strategy, measured.sizes) if strategy in SHARDED else 0
        if not rollout.rows_within(free - gathered):
            gathered = 0
        samples = min(rollout.rows_within(free - gathered), job.batch, _most_rows(rollout))
    fits = rows >= 1 and (rollout is None or samples >= 1)
    if not fits:
        checkpointing, rows, samples, gathered = measured.checkpointing_options[-1], 1, 1, 0
    peak = measured.peak(task, checkpointing)
    passes = count_passes(task, rows, samples, job)
    sampling = 0 if rollout is None else rollout.bytes(samples) + gathered
    return Choice(
        task=task,
        strategy=strategy,
        fits=fits,
        activation_checkpointing=checkpointing,
        micro_batch_tokens=rows * peak.width,
        rollout_batch_tokens=0 if rollout is None else samples * rollout.width,
        gather_for_generation=gathered > 0,
        memory=replace(static, activations=peak.bytes(rows), rollout=sampling),
        traffic=traffic(strategy, processes, measured.sizes, trained.trained, passes, checkpointing, gathered > 0),
        passes=passes,
    )


def trained_bytes(task: str, sizes: Footprint, job: Job) -> Trained:
    """Bytes of a task's adapters and heads. PPO's reward is a frozen adapter on the same backbone."""
    head = 4 * sizes.hidden_size
    if task == "reward":
        return Trained(sizes.adapter + head)
    own = sizes.adapter * (2 if job.value_function == "adapter" else 1) + head + 4  # the value head has a bias
    return Trained(own, sizes.adapter * (2 if job.reference_adapter else 1) + head, own)


def count_passes(task: str, rows: int, samples: int, job: Job) -> Passes:
    """Number of passes in a step, with `rows` rows per micro-batch and `samples` responses per rollout."""
    groups = math.ceil(job.rows(task) / rows)
    if task == "reward":
        return Passes(training=groups)
    per_group = 2 if job.value_function == "adapter" else 1  # a value adapter needs its own pass through the layers
    updates = job.num_ppo_epochs * job.num_mini_batches
    return Passes(
        forward=(2 + per_group) * groups,  # the reward, the reference, and the sampling policy
        training=per_group * updates * math.ceil(job.rows(task) / job.num_mini_batches / rows),
        decoding=math.ceil(job.batch / samples) * job.response_length,  # the prompt's pass yields the first token
        steps=updates,
    )


def _training_rows(measured: Measured, task: str, budget: float, wanted: int) -> tuple[bool, int]:
    """Whether to recompute activations, and the number of rows that then fit, up to `wanted`."""
    rows = 0
    for checkpointing in measured.checkpointing_options:
        peak = measured.peak(task, checkpointing)
        rows = min(peak.rows_within(budget), wanted, _most_rows(peak))
        if rows >= min(wanted, max(1, _BUSY // peak.width)):
            return checkpointing, rows
    return measured.checkpointing_options[-1], rows


def _most_rows(peak: Peak) -> int:
    return max(1, _LARGEST // peak.width)


def plan(processes: int, budget: float, measured: Measured, job: Job) -> list[Choice]:
    """Plan every task under every strategy that works with this number of processes."""
    names = [name for name in STRATEGIES if processes > 1 or name in ("single", "fsdp2_offload")]
    return [choose(task, name, processes, budget, measured, job) for task in TASKS for name in names]


def recommended(choices: Sequence[Choice], task: str) -> Choice | None:
    """The fastest strategy that fits and uses all processes; ``None`` if none fits."""
    mine = [choice for choice in choices if choice.task == task]
    several = any(choice.strategy == "ddp" for choice in mine)
    return next((choice for choice in mine if choice.fits and not (several and choice.strategy == "single")), None)


@dataclass(frozen=True, slots=True)
class Remedy:
    """The smallest change that makes a task fit."""

    processes: int | None  # either this many of the same devices with FSDP2; `None` if no number suffices
    memory: int  # or this many bytes on each device, with `strategy`
    strategy: str  # the strategy that needs the least memory


def remedy(task: str, processes: int, budget: float, measured: Measured, job: Job) -> Remedy:
    counts = (2**power for power in range(1, int(math.log2(_MOST_PROCESSES)) + 1))
    enough = next((count for count in counts if choose(task, "fsdp2", count, budget, measured, job).fits), None)
    needs = [choice for choice in plan(processes, 0.0, measured, job) if choice.task == task]
    smallest = min(needs, key=lambda choice: choice.memory.peak)
    return Remedy(enough, smallest.memory.peak, smallest.strategy)
