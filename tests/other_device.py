"""A device that is not the CPU, on machines that have only a CPU: to find tensors that were not moved.

Tensors on it hold their numbers on the CPU, where everything is computed, and say that they are elsewhere. An operation
on some tensors of this device and some of the CPU is an error, as it is on a real one; so is `.numpy()`. It goes by the
name of a kind of device that torch knows, that no machine has, and that needs no driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy", 0)
_ATEN = torch.ops.aten
_BETWEEN = {_ATEN._to_copy.default, _ATEN.copy_.default}  # what goes from one device to another
# Operations whose indices may be on the CPU.
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}
_TOGETHER = {_ATEN.cat.default, _ATEN.stack.default}  # which take no number of the CPU either


class OnDevice(Tensor):
    """A tensor on the device.

    Attributes:
        inner: Its numbers, on the CPU.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:  # torch's own refuses subclasses
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors on the device where it is named, which no argument would tell."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU, and put the result where it belongs."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = any(isinstance(tensor, OnDevice) for tensor in tensors)
    named = kwargs.get("device")
    target = DEVICE if named is None and there else torch.device(named or "cpu")
    if not there and target.type == "cpu":
        return func(*args, **kwargs)
    if there and func not in _BETWEEN:
        _refuse_strangers(func, args, tensors)
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
    if named is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    result = func(*inner_args, **inner_kwargs)
    if func is _ATEN.copy_.default:
        return args[0]
    if target.type == "cpu":
        return result
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, OnDevice, result))


def _refuse_strangers(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _INDEXED and isinstance(args[0], OnDevice):
        tensors = [value for value in (args[0], *args[2:]) if isinstance(value, Tensor)]
    numbers = func not in _TOGETHER and func not in _INDEXED
    left = [t for t in tensors if not isinstance(t, OnDevice) and not (numbers and t.dim() == 0)]
    if left:
        raise RuntimeError(f"{func}: some tensors are on {DEVICE}, and one of {tuple(left[0].shape)} is on the CPU")


@contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Inside, there is the device."""
    kind = DEVICE.type
    names = ("synchronize", "get_rng_state", "set_rng_state")
    module = SimpleNamespace(**dict.fromkeys(names, lambda *_, **__: None), device_count=lambda: 1)
    monkeypatch.setattr(torch, kind, module, raising=False)
    # Autocasting knows some kinds of devices only.
    casts, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", lambda d, *a, **k: nullcontext() if d == kind else casts(d, *a, **k))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *d: False if d == (kind,) else enabled(*d))
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # tensors of this device cannot be created in it
    before = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes a tensor, and moves it
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to() would keep the CPU's parameters
    try:
        with _Factories():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before[0])
        torch.__future__.set_overwrite_module_params_on_conversion(before[1])
