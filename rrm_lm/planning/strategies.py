"""What each way to spread training over processes holds on a process, and what it sends: plain arithmetic.

Weights are frozen, so what grows with the number of trained parameters (gradients, optimizer, what processes reduce) is
small, and what matters is where the weights lie and how often they travel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from rrm_lm.planning.footprint import Footprint

# From the fastest to the one that needs the least memory.
STRATEGIES = {
    "single": "one process",
    "ddp": "DDP",
    "zero2": "ZeRO-2",
    "fsdp2": "FSDP2",
    "zero3": "ZeRO-3",
    "fsdp2_offload": "FSDP2, offloaded",
}
SHARDED = ("fsdp2", "zero3", "fsdp2_offload")
_MOMENTS = 2  # float32 numbers that AdamW keeps of each trained one
# Blocks that FSDP2 has gathered at once: the one that computes, the buffer that it was received in, and the next one.
# tests/distributed/test_gathered_blocks.py measures it.
_GATHERED_BLOCKS = 3
# DeepSpeed's defaults, in numbers: stage3_max_live_parameters, stage3_prefetch_bucket_size, reduce_bucket_size.
_LIVE, _PREFETCHED, _BUCKET = 1_000_000_000, 50_000_000, 500_000_000


@dataclass(frozen=True, slots=True)
class Trained:
    """Bytes of what lies on the backbone.

    Attributes:
        trained: Adapters and heads that are trained.
        frozen: Adapters that are not: the reference, the reward.
        copied: The copy of what is trained that PPO goes back to when a policy runs away.
    """

    trained: int
    frozen: int = 0
    copied: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device of one process at the peak.

    Attributes:
        weights: The process's part of the backbone.
        gathered: Weights of other processes while they are computed with, and buffers for travelling ones.
        adapters: Adapters and heads.
        gradients: Of what is trained.
        optimizer: AdamW's state.
        activations: What a forward and backward pass of a micro-batch takes.
        rollout: What sampling takes; never at the same time as activations.
        host: In the computer's own memory, for this process. Not on the device.
    """

    weights: int = 0
    gathered: int = 0
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    rollout: int = 0
    host: int = 0

    @property
    def standing(self) -> int:
        """What is there however large a batch is."""
        return self.weights + self.gathered + self.adapters + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """All of it, at the worst moment."""
        return self.standing + max(self.activations, self.rollout)

    def to_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"peak": self.peak}


def standing(strategy: str, processes: int, sizes: Footprint, trained: Trained) -> Memory:
    """What a process holds however large a batch is.

    Args:
        strategy: One of :data:`STRATEGIES`.
        processes: How many there are.
        sizes: Of the model.
        trained: What lies on it.
    """
    whole, own = sizes.weights, -(-sizes.weights // processes)
    adapters, gradients = trained.trained + trained.frozen + trained.copied, trained.trained
    moments = _MOMENTS * trained.trained
    itemsize = sizes.weights // max(1, sizes.parameters)
    if strategy == "single":
        return Memory(weights=whole, adapters=adapters, gradients=gradients, optimizer=moments)
    if strategy == "ddp":  # gradients travel in buckets that are copies of them
        return Memory(weights=whole, adapters=adapters, gradients=2 * gradients, optimizer=moments)
    if strategy == "zero2":
        state = -(-(moments + trained.trained) // processes)  # with a float32 copy of what is trained
        return Memory(
            weights=whole, gathered=_BUCKET * itemsize, adapters=adapters, gradients=gradients, optimizer=state
        )
    if strategy == "zero3":
        live = min(_LIVE + _PREFETCHED, sizes.parameters) * itemsize
        state = -(-(moments + trained.trained) // processes)
        return Memory(
            weights=own,
            gathered=live + _BUCKET * itemsize,
            adapters=-(-adapters // processes),
            gradients=-(-gradients // processes),
            optimizer=state,
        )
    # FSDP2 keeps unsharded gradients until the last micro-batch of a step, so that they travel once.
    gathered = sizes.rest + _GATHERED_BLOCKS * sizes.block
    part = Memory(
        weights=own,
        gathered=gathered,
        adapters=-(-adapters // processes),
        gradients=gradients,
        optimizer=-(-moments // processes),
    )
    if strategy == "fsdp2":
        return part
    host = part.weights + part.adapters + part.optimizer + -(-gradients // processes)
    return Memory(gathered=gathered, gradients=gradients, host=host)


def whole_model(strategy: str, sizes: Footprint) -> int:
    """Bytes that a process holds beside :func:`standing` while it has gathered the whole model for rollouts."""
    if strategy == "zero3":
        return sizes.weights
    return max(0, sizes.weights - sizes.rest - (_GATHERED_BLOCKS - 1) * sizes.block)


@dataclass(frozen=True, slots=True)
class Passes:
    """How often the model is run in one step, on each process.

    Attributes:
        forward: Without a backward.
        training: Forward and backward.
        decoding: For rollouts: prompts, and one for each token of a batch of responses.
        steps: Optimizer steps.
    """

    forward: int = 0
    training: int = 0
    decoding: int = 0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one process receives in one step.

    Attributes:
        trained: Gradients of what is trained, and what goes back after the optimizer's step.
        learning: Weights, for everything but rollouts.
        rollout: Weights, for rollouts.
        host: From the computer's own memory to the device.
    """

    trained: int = 0
    learning: int = 0
    rollout: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All but what comes from the computer's own memory."""
        return self.trained + self.learning + self.rollout

    def to_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}


def traffic(
    strategy: str,
    processes: int,
    sizes: Footprint,
    trained: int,
    passes: Passes,
    *,
    checkpointing: bool = False,
    gathering: bool = False,
) -> Traffic:
    """What travels in one step.

    Args:
        strategy: One of :data:`STRATEGIES`.
        processes: How many there are.
        sizes: Of the model.
        trained: Bytes of what is trained.
        passes: Of a process in a step.
        checkpointing: Whether layers recompute their activations.
        gathering: Whether the whole model is gathered for rollouts, once in a step, and not layer by layer for each
            token.
    """
    if processes == 1 and strategy != "fsdp2_offload":
        return Traffic()
    others = (processes - 1) / processes
    exchanged = others * trained
    if strategy == "single":
        return Traffic()
    if strategy == "ddp":  # reduced in a ring: each part goes around once to be added up and once to be told
        return Traffic(trained=round(2 * exchanged * passes.steps))
    if strategy == "zero2":  # gradients are partitioned in every micro-batch
        return Traffic(trained=round(exchanged * (passes.training + passes.steps)))
    # A backward pass gathers again; under ZeRO-3 recomputing a layer does so once more.
    again = 3 if strategy == "zero3" and checkpointing else 2
    learning = passes.forward + again * passes.training
    reduced = passes.training if strategy == "zero3" else passes.steps
    weights = others * (sizes.weights + trained)
    decoding = min(1, passes.decoding) if gathering else passes.decoding
    return Traffic(
        trained=round(exchanged * reduced),
        learning=round(weights * learning),
        rollout=round(weights * decoding),
        host=round(sizes.weights / processes * (learning + decoding)) if strategy == "fsdp2_offload" else 0,
    )
