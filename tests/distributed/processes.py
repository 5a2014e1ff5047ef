"""Two real processes (gloo, on the CPU), data-parallel or sharded, and the bytes they exchange."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rrm_lm.models.sharding import reshard
from tests.smoke.launches import free_port

ROOT = Path(__file__).parents[2]


def launch(file: str, *words: object, config: str | None = None, timeout: float = 220) -> None:
    """Run a file on two processes of one process group.

    Args:
        file: The file.
        words: Its arguments.
        config: A name in `configs/accelerate` to start them by. Without one, they are plain processes on the CPU.
        timeout: Seconds.
    """
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if config is None:
        port = free_port()
        command = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    else:
        del environment["ACCELERATE_USE_CPU"]  # with which Accelerate leaves DeepSpeed out
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        settings = ROOT / "configs" / "accelerate" / f"{config}.yaml"
        command = ["accelerate.commands.launch", "--config_file", str(settings), "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command, file, *map(str, words)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def shard_on_cpu() -> None:
    """Set the environment variables that `accelerate launch` with FSDP2 sets."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_VERSION"] = "2"
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"


def share_held(module: nn.Module) -> float:
    """The fraction of a model's bytes that this process holds between computations."""
    reshard(module)
    tensors = [parameter.detach() for parameter in module.parameters()]
    held = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors]
    return sum(map(_bytes, held)) / sum(map(_bytes, tensors))


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def counting_bytes() -> Iterator[dict[str, int]]:
    """Counts the bytes that this process passes to each kind of gloo collective, according to the profiler.

    Numbers count as four bytes each, which those of gradients have.
    """
    found: dict[str, int] = {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        yield found
    for event in profile.events() or ():
        if event.name.startswith("gloo:"):
            for shape in event.input_shapes:
                found[event.name] = found.get(event.name, 0) + 4 * prod(shape)
