"""`--dry_run true`: one step with the longest rows on every process, its peak memory, and nothing saved."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch

from rrm_lm.training.reward.trainer import RewardDataset

logger = logging.getLogger(__name__)


def dry_run(trainer: Any, train: Callable[..., Any]) -> Any:
    """Train one step on the longest rows, and print the largest memory of each process. Called by all processes.
    The trainer's settings are already those of a dry run (:class:`rrm_lm.training.arguments.TrainerArguments`).
    """
    lengthen(trainer)
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = train(resume_from_checkpoint=None)
    peaks = trainer.accelerator.gather(torch.tensor([peak_bytes(device)], dtype=torch.long, device=device)).tolist()
    if trainer.accelerator.is_main_process:
        kind = "GPU memory" if device.type == "cuda" else "memory of the whole process"
        shown = ", ".join(f"process {rank} {peak / 1e9:.2f} GB" for rank, peak in enumerate(peaks))
        if device.type == "cuda":
            shown += f", of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
        logger.info("dry run: one step with the longest rows is done; largest %s: %s", kind, shown)
        logger.info("nothing was saved; leave out --dry_run to train")
    return result


def lengthen(trainer: Any) -> None:
    """Make the longest rows those of the first step, and let sampled responses reach their limit."""
    if hasattr(trainer, "prompts"):  # PPO and RLOO
        lengths, order = [len(item.ids) for item in trainer.prompts], trainer.order
        longest = descending(lengths)[order.process :: order.processes]
        places = list(range(len(lengths)))
        for place, long in zip(order.update(0), cycle(longest), strict=False):
            places[place] = long
        trainer.end_ids = []
        if hasattr(trainer.train_dataset, "select"):  # RLOO; PPO's loader reads the list
            trainer.train_dataset = trainer.train_dataset.select(places)
        else:
            trainer.prompts[:] = [trainer.prompts[place] for place in places]
        return
    args, data = trainer.args, trainer.train_dataset
    is_reward = isinstance(data, RewardDataset)
    lengths = [sum(map(len, one.rows)) for one in data] if is_reward else list(data["length"])
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    places = list(islice(cycle(descending(lengths)[:step]), step))
    trainer.train_dataset = RewardDataset(data[place] for place in places) if is_reward else data.select(places)


def descending(lengths: Sequence[int]) -> list[int]:
    """The places of the lengths, longest first."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: of tensors on a GPU, otherwise of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
