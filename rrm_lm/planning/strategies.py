"""Memory and communication per process of each distribution strategy, in closed form.

The backbone is frozen, so gradients, optimizer state and gradient reduction are small. The placement of the weights and
how often they are sent dominate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rrm_lm.planning.footprint import Footprint

# From the fastest to the one with the least memory.
STRATEGIES = {
    "single": "one process",
    "ddp": "DDP",
    "zero2": "ZeRO-2",
    "fsdp2": "FSDP2",
    "zero3": "ZeRO-3",
    "fsdp2_offload": "FSDP2, offloaded",
}
SHARDED = ("fsdp2", "zero3", "fsdp2_offload")
# Number of blocks that FSDP2 gathers at once: the one in use, its receive buffer, and the next one.
# tests/distributed/test_gathered_blocks.py measures it.
_GATHERED_BLOCKS = 3
# DeepSpeed's defaults, in parameters: stage3_max_live_parameters, stage3_prefetch_bucket_size, reduce_bucket_size.
_LIVE, _PREFETCHED, _BUCKET = 1_000_000_000, 50_000_000, 500_000_000


@dataclass(frozen=True, slots=True)
class Trained:
    """Bytes of the adapters and heads on a backbone."""

    trained: int  # trained adapters and heads
    frozen: int = 0  # frozen ones: the reference and the reward
    copied: int = 0  # PPO's backup of the trained ones, restored if the policy's KL gets too large


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes on the device of one process."""

    weights: int = 0  # the process's part of the backbone
    gathered: int = 0  # weights gathered from other processes, and communication buffers
    adapters: int = 0  # adapters and heads
    gradients: int = 0  # gradients of the trained parameters
    optimizer: int = 0  # AdamW's state
    activations: int = 0  # forward and backward pass of a micro-batch
    rollout: int = 0  # sampling; never at the same time as activations
    host: int = 0  # bytes in host memory for this process, not on the device

    @property
    def static(self) -> int:
        """Bytes that do not depend on the batch size."""
        return self.weights + self.gathered + self.adapters + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        return self.static + max(self.activations, self.rollout)

    def to_dict(self) -> dict[str, int]:
        return asdict(self) | {"peak": self.peak}


def static_memory(strategy: str, processes: int, sizes: Footprint, trained: Trained) -> Memory:
    """Memory of a process that does not depend on the batch size, for one of :data:`STRATEGIES`."""

    def part(count: int) -> int:
        return -(-count // processes)

    adapters, gradients = trained.trained + trained.frozen + trained.copied, trained.trained
    moments = 2 * trained.trained  # AdamW's
    itemsize = sizes.weights // max(1, sizes.parameters)
    if strategy in ("single", "ddp"):  # DDP's gradient buckets are copies of the gradients
        gradients *= 2 if strategy == "ddp" else 1
        return Memory(weights=sizes.weights, adapters=adapters, gradients=gradients, optimizer=moments)
    state = part(moments + trained.trained)  # ZeRO adds a float32 copy of the trained parameters
    if strategy == "zero2":
        return Memory(sizes.weights, _BUCKET * 4, adapters, gradients, state)  # adapters are reduced in float32
    if strategy == "zero3":
        gathered = (min(_LIVE + _PREFETCHED, sizes.parameters) + _BUCKET) * itemsize
        return Memory(part(sizes.weights), gathered, part(adapters), part(gradients), state)
    # FSDP2 keeps unsharded gradients until the last micro-batch of a step, and reduces them once.
    gathered = sizes.rest + _GATHERED_BLOCKS * sizes.block
    if strategy == "fsdp2":
        return Memory(part(sizes.weights), gathered, part(adapters), gradients, part(moments))
    host = part(sizes.weights) + part(adapters) + part(moments) + part(gradients)
    return Memory(gathered=gathered, gradients=gradients, host=host)


def gathered_model(strategy: str, sizes: Footprint) -> int:
    """Additional bytes over :func:`static_memory` while the full model is gathered for rollouts."""
    if strategy == "zero3":
        return sizes.weights
    return max(0, sizes.weights - sizes.rest - (_GATHERED_BLOCKS - 1) * sizes.block)


@dataclass(frozen=True, slots=True)
class Passes:
    """Number of passes per process in one step."""

    forward: int = 0  # forward passes only
    training: int = 0  # forward and backward passes
    decoding: int = 0  # passes of rollouts: prompts, and one per token of a batch of responses
    steps: int = 1  # optimizer steps


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one process receives in one step."""

    trained: int = 0  # gradients, and parameters sent back after the optimizer step
    learning: int = 0  # weights for everything except rollouts
    rollout: int = 0  # weights for rollouts
    host: int = 0  # bytes from host memory to the device

    def to_dict(self) -> dict[str, int]:
        return asdict(self) | {"total": self.trained + self.learning + self.rollout}


def traffic(
    strategy: str,
    processes: int,
    sizes: Footprint,
    trained: int,
    passes: Passes,
    checkpointing: bool = False,
    gathering: bool = False,
) -> Traffic:
    """The traffic of one process in one step. With `gathering`, the full model is gathered once for all rollouts of a
    step; otherwise its layers are gathered for every token.
    """
    if strategy == "single" or (processes == 1 and strategy != "fsdp2_offload"):
        return Traffic()
    others = (processes - 1) / processes
    exchanged = others * trained
    if strategy == "ddp":  # a ring all-reduce sends each part twice: for the sum and to share it
        return Traffic(trained=round(2 * exchanged * passes.steps))
    if strategy == "zero2":  # partitions gradients in every micro-batch
        return Traffic(trained=round(exchanged * (passes.training + passes.steps)))
    # A backward pass gathers again; ZeRO-3 also gathers for recomputation.
    gathers = 3 if strategy == "zero3" and checkpointing else 2
    learning = passes.forward + gathers * passes.training
    reduced = passes.training if strategy == "zero3" else passes.steps
    weights = others * (sizes.weights + trained)
    decoding = min(1, passes.decoding) if gathering else passes.decoding
    return Traffic(
        trained=round(exchanged * reduced),
        learning=round(weights * learning),
        rollout=round(weights * decoding),
        host=round(sizes.weights / processes * (learning + decoding)) if strategy == "fsdp2_offload" else 0,
    )
