"""Processes of one machine that load the same model hold its converted weights once.

transformers maps weights that it uses as they are in the checkpoint, and all processes share the pages of that file. It
copies weights that it converts to another dtype or merges (the experts of a layer), so that each process would hold a
whole model until it is sharded. Instead, the first process of each machine converts the weights and writes the model to
a file without a name, which all of them map. The system deletes that file when no process uses it, however they end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor

from rrm_lm.models.embedded import cache_home

logger = logging.getLogger(__name__)

_FEW = 0.02  # of a model's bytes, which each process may hold: a new head, or norms that are kept in float32
_SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"  # read by transformers

_is_together: ContextVar[bool] = ContextVar("is_together", default=False)


@contextlib.contextmanager
def loading_together() -> Iterator[None]:
    """Declare that all processes load the same models inside, to shard them; also a decorator. Elsewhere, a process may
    load alone, for example to compare a saved model.
    """
    token = _is_together.set(True)
    try:
        yield
    finally:
        _is_together.reset(token)


def load_once(load: Callable[[], tuple[Any, Any]], state: PartialState) -> tuple[Any, Any]:
    """What `load` returns, a model and more, with weights that this machine's processes share if they were converted.
    Called by all processes inside :func:`loading_together`; elsewhere, and if this launch does not shard, a plain call.
    """
    if not (_is_together.get() and state.num_processes > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return load()
    loaded, file, failure = None, None, None
    if state.is_local_main_process:
        try:
            with _one_by_one():
                loaded = load()
            file = _written(loaded)
        except Exception as error:  # raised below, because the other processes are waiting
            failure = error
    names = gather_object([file and f"/proc/{os.getpid()}/fd/{file.fileno()}"])
    name = names[state.process_index - state.local_process_index]  # of this machine's first process
    if not all(gather_object([name is None or os.access(name, os.R_OK)])):  # processes in containers of their own
        name = None
    if name is not None:
        loaded = None  # the first process frees its copies, and maps the file like the others
        loaded = _read(name)
    state.wait_for_everyone()
    if file is not None:
        file.close()
    if failure is not None:
        raise failure
    return load() if loaded is None else loaded


@contextlib.contextmanager
def _one_by_one() -> Iterator[None]:
    """Convert weights one after the other. The threads of transformers would convert all of them before it merges the
    first ones, and hold two models.
    """
    before = os.environ.get(_SEQUENTIAL)
    os.environ[_SEQUENTIAL] = "1"
    try:
        yield
    finally:
        del os.environ[_SEQUENTIAL]
        if before is not None:
            os.environ[_SEQUENTIAL] = before


def _written(loaded: tuple[Any, Any]) -> IO[bytes] | None:
    """A file without a name that holds a loaded model; None if it is not needed or cannot be written."""
    model = loaded[0]
    is_alone = os.environ.get("LOCAL_WORLD_SIZE") == "1"
    if is_alone or getattr(model, "hf_quantizer", None) is not None or not _is_converted(list(model.parameters())):
        return None
    try:
        cache_home().mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=cache_home())  # noqa: SIM115 - open until all processes have mapped it
        torch.save((loaded, torch.get_rng_state()), f"/proc/self/fd/{file.fileno()}")
    except Exception as error:  # a full disk, or a class that pickle cannot write
        reason = " ".join(str(error).split())[:200]
        logger.warning("Until the model is sharded, each process holds a copy of its converted weights: %s", reason)
        return None
    return file


def _read(name: str) -> tuple[Any, Any]:
    """The model in a file of :func:`_written`. A pickle, but only processes of this run can write to that file."""
    loaded, generator = torch.load(name, mmap=True, weights_only=False)
    for buffer in loaded[0].buffers():
        buffer.data = buffer.clone()  # buffers are not sharded, and would keep the file
    torch.set_rng_state(generator)  # as after loading: new weights are random
    return loaded


def _is_converted(tensors: list[Tensor]) -> bool:
    """Whether more than a few weights are copies, not mapped from a file. False where the system does not say so."""
    maps = Path("/proc/self/maps")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()] if maps.exists() else []
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[4] != "0"]  # those of a file
    copied = [one for one in tensors if not any(start <= one.data_ptr() < end for start, end in spans)]
    return bool(lines) and sum(map(_bytes, copied)) > _FEW * sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
