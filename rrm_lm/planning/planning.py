"""A plan on paper: what reward-model training and PPO take on each process, what fits, and which batch to use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig

from rrm_lm.errors import ConfigError
from rrm_lm.planning.footprint import Footprint, footprint
from rrm_lm.planning.peak_memory import Peak, RowShape, Tracer
from rrm_lm.planning.strategies import (
    SHARDED,
    STRATEGIES,
    Memory,
    Passes,
    Traffic,
    Trained,
    standing,
    traffic,
    whole_model,
)

TASKS = {"reward": "reward model", "ppo": "PPO"}
_ROOMY = 2048  # tokens of a micro-batch that keep a device busy enough not to recompute activations for larger ones
_MOST = 65536  # larger micro-batches gain nothing
_MOST_PROCESSES = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained. Lengths are the longest ones, in tokens: memory must hold those.

    Attributes:
        prompt_length, response_length, critique_length: Of each example; a critique of 0 is none.
        batch: Pairs, or episodes, of a step on each process.
        samples_per_prompt, num_ppo_epochs, num_mini_batches: As PPO has them.
        value_function: ``head`` or ``adapter``.
        reference_adapter: Whether PPO starts from an adapter, whose frozen copy is then the reference.
        activation_checkpointing: Whether layers recompute their activations; ``None``: where it is needed.
    """

    prompt_length: int = 512
    response_length: int = 256
    critique_length: int = 0
    batch: int = 8
    samples_per_prompt: int = 1
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    value_function: str = "head"
    reference_adapter: bool = False
    activation_checkpointing: bool | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_length", "response_length", "batch", "samples_per_prompt", "num_ppo_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected="at least 1")
        if self.critique_length < 0:
            raise ConfigError(
                f"critique_length is {self.critique_length}", where="critique_length", expected="0 or more"
            )
        for name in ("samples_per_prompt", "num_mini_batches"):
            if getattr(self, name) < 1 or self.batch % getattr(self, name):
                raise ConfigError(
                    f"{self.batch} episodes a process cannot be divided by {getattr(self, name)}",
                    where=name,
                    expected="a divisor of per_device_train_batch_size * gradient_accumulation_steps",
                )
        if self.value_function not in ("head", "adapter"):
            raise ConfigError(
                f"No plan can be made for value_function {self.value_function!r}",
                where="value_function",
                expected="head or adapter",
            )

    @property
    def pair(self) -> RowShape:
        """A row of reward-model training."""
        return RowShape(self.prompt_length, self.response_length, 2, self.critique_length)

    @property
    def family(self) -> RowShape:
        """A row of PPO: a prompt and its samples."""
        return RowShape(self.prompt_length, self.response_length, self.samples_per_prompt)

    @property
    def episode(self) -> RowShape:
        """A row of a rollout."""
        return RowShape(self.prompt_length, self.response_length)

    def rows(self, task: str) -> int:
        """Rows of a step on a process."""
        return self.batch if task == "reward" else self.batch // self.samples_per_prompt


@dataclass(frozen=True)
class Measured:
    """What is known of a model: sizes, and what its passes take, which is found out when it is asked for.

    Attributes:
        sizes: Of the model and an adapter.
        tried: Ways to learn: without recomputed activations, with them, or both in this order.
    """

    sizes: Footprint
    tried: tuple[bool, ...]
    _trace: Callable[[str, bool], Peak]
    _found: dict[tuple[str, bool], Peak] = field(default_factory=dict)

    def peak(self, task: str, recomputed: bool = False) -> Peak:
        """What a pass takes.

        Args:
            task: ``reward``, ``ppo``, or ``rollout`` for sampling.
            recomputed: Whether layers recompute their activations.
        """
        if (task, recomputed) not in self._found:
            self._found[task, recomputed] = self._trace(task, recomputed)
        return self._found[task, recomputed]


def measure(
    config: Any, lora: LoraConfig, dtype: torch.dtype, job: Job, *, attention: str | None = None, share: bool = True
) -> Measured:
    """Find out what a model takes, from its configuration.

    Args:
        config: The model's.
        lora: What adapters are like.
        dtype: Of the weights.
        job: What is to be trained.
        attention: Implementation of attention.
        share: Whether lines share what they have in common; off where an implementation cannot.

    Raises:
        ModelError: The configuration is of no dense causal language model.
        ConfigError: The adapter does not fit the model.
    """
    try:
        sizes = footprint(config, lora, dtype)
    except ValueError as error:
        raise ConfigError(
            f"LoRA with these settings cannot be put on this model: {error}",
            where="lora_r, lora_alpha, lora_dropout, lora_target_modules",
            remedy="leave out --lora_target_modules to adapt all linear layers",
        ) from error
    tracer = Tracer(config, lora, dtype, attention=attention, value=job.value_function, share=share)
    tried = (False, True) if job.activation_checkpointing is None else (job.activation_checkpointing,)

    def trace(task: str, recomputed: bool) -> Peak:
        if task == "rollout":
            return tracer.rollout(job.episode)
        return tracer.reward(job.pair, recomputed) if task == "reward" else tracer.policy(job.family, recomputed)

    return Measured(sizes, tried, trace)


@dataclass(frozen=True, slots=True)
class Choice:
    """One task under one strategy.

    Attributes:
        task, strategy: Their names.
        fits: Whether it does.
        activation_checkpointing, micro_batch_tokens, rollout_batch_tokens: The settings to use; if it does not fit,
            those that need the least. Without rollouts, ``rollout_batch_tokens`` is 0.
        gather_for_generation: Whether the whole of a sharded model is gathered for rollouts: where it fits.
        memory: At the peak, with these settings.
        traffic: Of a step, with these settings.
        passes: Of a step.
    """

    task: str
    strategy: str
    fits: bool
    activation_checkpointing: bool
    micro_batch_tokens: int
    rollout_batch_tokens: int
    gather_for_generation: bool
    memory: Memory
    traffic: Traffic
    passes: Passes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": self.memory.to_dict(), "traffic": self.traffic.to_dict()}


def choose(task: str, strategy: str, processes: int, room: float, measured: Measured, job: Job) -> Choice:
    """The largest batch of a task that fits, and what it takes.

    Args:
        task: ``reward`` or ``ppo``.
        strategy: One of :data:`rrm_lm.planning.strategies.STRATEGIES`.
        processes: How many there are.
        room: Bytes on each device.
        measured: The model.
        job: What is to be trained.
    """
    processes = 1 if strategy == "single" else processes
    trained = what_is_trained(task, measured.sizes, job)
    base = standing(strategy, processes, measured.sizes, trained)
    left = room - base.standing
    recomputed, rows = _rows(measured, task, left, job.rows(task))
    rollout, samples, whole = None, 0, 0
    if task == "ppo":
        rollout = measured.peak("rollout")
        whole = whole_model(strategy, measured.sizes) if strategy in SHARDED else 0
        if not rollout.rows_within(left - whole):
            whole = 0
        samples = min(rollout.rows_within(left - whole), job.batch, _most_rows(rollout))
    fits = rows >= 1 and (rollout is None or samples >= 1)
    if not fits:
        recomputed, rows, samples, whole = measured.tried[-1], 1, 1, 0
    peak = measured.peak(task, recomputed)
    memory = replace(
        base, activations=peak.bytes(rows), rollout=0 if rollout is None else rollout.bytes(samples) + whole
    )
    passes = count_passes(task, rows, samples, job)
    return Choice(
        task,
        strategy,
        fits,
        recomputed,
        rows * peak.width,
        0 if rollout is None else samples * rollout.width,
        whole > 0,
        memory,
        traffic(
            strategy,
            processes,
            measured.sizes,
            trained.trained,
            passes,
            checkpointing=recomputed,
            gathering=whole > 0,
        ),
        passes,
    )


def what_is_trained(task: str, sizes: Footprint, job: Job) -> Trained:
    """Adapters and heads of a task. PPO's reward is an adapter on the same backbone, and frozen."""
    head = 4 * sizes.hidden_size
    if task == "reward":
        return Trained(sizes.adapter + head)
    own = sizes.adapter * (2 if job.value_function == "adapter" else 1) + head + 4  # the value head has a bias
    return Trained(own, sizes.adapter * (2 if job.reference_adapter else 1) + head, own)


def count_passes(task: str, rows: int, samples: int, job: Job) -> Passes:
    """How often the model is run in a step.

    Args:
        task: ``reward`` or ``ppo``.
        rows: Of a micro-batch.
        samples: Responses that are sampled at once.
        job: What is to be trained.
    """
    groups = math.ceil(job.rows(task) / rows)
    if task == "reward":
        return Passes(training=groups)
    twice = 2 if job.value_function == "adapter" else 1  # the value function's own pass through the layers
    learned = job.num_ppo_epochs * job.num_mini_batches * math.ceil(job.rows(task) / job.num_mini_batches / rows)
    batches = math.ceil(job.batch / samples)
    return Passes(
        forward=(2 + twice) * groups,  # the reward, the reference, and the policy as it sampled
        training=twice * learned,
        decoding=batches * job.response_length,  # the prompt's pass gives the first token
        steps=job.num_ppo_epochs * job.num_mini_batches,
    )


def _rows(measured: Measured, task: str, room: float, wanted: int) -> tuple[bool, int]:
    """Whether to recompute activations, and how many rows then fit, up to as many as are wanted."""
    rows = 0
    for recomputed in measured.tried:
        peak = measured.peak(task, recomputed)
        rows = min(peak.rows_within(room), wanted, _most_rows(peak))
        if rows >= min(wanted, max(1, _ROOMY // peak.width)):
            return recomputed, rows
    return measured.tried[-1], rows


def _most_rows(peak: Peak) -> int:
    return max(1, _MOST // peak.width)


def plan(processes: int, room: float, measured: Measured, job: Job) -> list[Choice]:
    """Every task under every strategy that there is for so many processes."""
    names = [name for name in STRATEGIES if processes > 1 or name in ("single", "fsdp2_offload")]
    return [choose(task, name, processes, room, measured, job) for task in TASKS for name in names]


def recommended(choices: Sequence[Choice], task: str) -> Choice | None:
    """The fastest strategy that fits, on all the processes there are; ``None`` if none fits."""
    mine = [choice for choice in choices if choice.task == task]
    several = any(choice.strategy == "ddp" for choice in mine)
    return next((choice for choice in mine if choice.fits and not (several and choice.strategy == "single")), None)


@dataclass(frozen=True, slots=True)
class Remedy:
    """The least that would have to change for a task to fit.

    Attributes:
        processes: So many of these devices under FSDP2; ``None`` if no number of them is enough.
        memory: Or so many bytes on each, with the strategy that needs the least.
        strategy: That strategy.
    """

    processes: int | None
    memory: int
    strategy: str


def remedy(task: str, processes: int, room: float, measured: Measured, job: Job) -> Remedy:
    """What would make a task fit that does not."""
    count, least = 2, None
    while count <= _MOST_PROCESSES and least is None:
        least = count if choose(task, "fsdp2", count, room, measured, job).fits else None
        count *= 2
    needs = [choice for choice in plan(processes, 0.0, measured, job) if choice.task == task]
    smallest = min(needs, key=lambda choice: choice.memory.peak)
    return Remedy(least, smallest.memory.peak, smallest.strategy)


@dataclass(frozen=True, slots=True)
class TRLMemory:
    """What TRL's PPO holds at least: four models, of which two are trained whole, or three with LoRA on the policy.

    Attributes:
        lora: Whether the policy has an adapter. Then there is no reference model; the value model is trained whole.
        models: Bytes of the models' weights.
        states: Gradients and AdamW's state, in the weights' dtype as torch keeps them.
        logits: The scores of a step's rollouts, stacked: episodes x tokens x vocabulary in float32, and once more while
            they are stacked.
    """

    lora: bool
    models: int
    states: int
    logits: int

    def peak(self, processes: int = 1) -> int:
        """Bytes of a process at least, without activations; with several, models and states as ZeRO-3 divides them."""
        return -(-(self.models + self.states) // processes) + self.logits

    def to_dict(self, processes: int) -> dict[str, Any]:
        return asdict(self) | {"peak": self.peak(), "peak_zero3": self.peak(processes)}


def trl_memory(sizes: Footprint, job: Job, lora: bool) -> TRLMemory:
    """What TRL 1.12's PPOTrainer would take for the same job."""
    logits = 2 * 4 * job.batch * job.response_length * sizes.vocabulary
    if lora:
        return TRLMemory(True, 3 * sizes.weights + sizes.adapter, 3 * (sizes.weights + sizes.adapter), logits)
    return TRLMemory(False, 4 * sizes.weights, 2 * 3 * sizes.weights, logits)
