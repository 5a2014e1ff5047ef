"""Finds where the host would wait for a GPU, on a machine without one.

Inside `host_waits`, whatever reads a tensor's value on the host, or makes a tensor from the host's values, is noted
with the line of `rrm_lm` that asked for it. On a GPU, each of these stops the queue of kernels. Optimizers are left
out: the step counts that they read are on the host.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rrm_lm

_PACKAGE = str(Path(rrm_lm.__file__).parent)
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
_METHODS = ("tolist", "numpy", "cpu", "__array__")
_FACTORIES = ("tensor", "as_tensor", "from_numpy")


class _Watch(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in _READS or (name.startswith("aten::index") and _has_mask(args)):
            note(self.found, name)
        elif name == "aten::lift_fresh":  # a tensor made from a list, also that of an index
            note(self.found, "a tensor from the host")
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    """Whether a tensor is indexed by a mask, whose true places have to be counted first."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in indices)


def note(found: list[str], what: str) -> None:
    """Add `what` with the innermost line of the package, unless an optimizer asked."""
    frames = traceback.extract_stack()
    # Batches are made on the host, and `from_host` copies without waiting.
    if any("torch/optim" in frame.filename or frame.name in ("collate", "from_host") for frame in frames):
        return
    own = [frame for frame in frames if frame.filename.startswith(_PACKAGE)]
    where = f"{Path(own[-1].filename).relative_to(_PACKAGE)}:{own[-1].lineno}: {own[-1].line}" if own else "outside"
    found.append(f"{what} at {where}")


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Yields the list of places, which fills inside the block."""
    found: list[str] = []

    def watched(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(found, name)
            return original(*args, **kwargs)

        return call

    methods = [mock.patch.object(torch.Tensor, n, watched(n, getattr(torch.Tensor, n))) for n in _METHODS]
    factories = [mock.patch.object(torch, n, watched(n, getattr(torch, n))) for n in _FACTORIES]
    for patch in (*methods, *factories):
        patch.start()
    try:
        with _Watch(found):
            yield found
    finally:
        for patch in (*methods, *factories):
            patch.stop()
