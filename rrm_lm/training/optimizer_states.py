"""Gather the optimizer state of a sharded run into that of a single process, and shard it again.

With DeepSpeed's ZeRO-1 and 2, each process holds one flat tensor per parameter group, with a part of the float32
weights, and the moments of that part. These parts only fit the same number of processes, and DeepSpeed's checkpoints
also contain the frozen model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rrm_lm.models.sharding import full_tensor, shard_like


def gather_state(state: Any) -> Any:
    """Gather an optimizer's ``state_dict()`` as full tensors on the CPU. Called by all processes."""
    if isinstance(state, Tensor):
        return full_tensor(state).cpu()
    if isinstance(state, dict):
        return {key: gather_state(value) for key, value in state.items()}
    return [gather_state(value) for value in state] if isinstance(state, list) else state


def shard_state(state: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Shard each tensor of a full ``state_dict()`` like its parameter. `groups` are the optimizer's own parameter
    groups, in the same order.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    shards: dict[int, Any] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state["state"].get(number, {}).items():
            fits = isinstance(value, Tensor) and value.shape == parameter.shape
            shards.setdefault(number, {})[name] = shard_like(value, parameter) if fits else value
    return {**state, "state": shards}


class ZeroStates:
    """Gathers and loads the state of DeepSpeed's ZeRO-1 or 2 optimizer. It takes the optimizer before DeepSpeed wraps
    it and replaces each group with a flat parameter. No group may be empty.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]

    def gather(self, zero: Any) -> dict[str, Any]:
        """Gather the ``state_dict()`` of a single-process optimizer on the CPU. Called by all processes. `zero` is
        DeepSpeed's optimizer.
        """
        state: dict[int, dict[str, Any]] = {}
        groups = []
        first = 0
        for parameters, settings in zip(self._groups, zero.optimizer.param_groups, strict=True):
            flat = settings["params"][0]
            numbers = list(range(first, first + len(parameters)))
            first += len(parameters)
            groups.append({**{name: value for name, value in settings.items() if name != "params"}, "params": numbers})
            for name, value in zero.optimizer.state[flat].items():
                for number, parameter in zip(numbers, parameters, strict=True):
                    is_flat = isinstance(value, Tensor) and value.shape == flat.shape
                    state.setdefault(number, {})[name] = _unflatten(value, parameter) if is_flat else _copy(value)
        return {"state": state, "param_groups": groups}

    def load(self, zero: Any, state: dict[str, Any]) -> None:
        """Load this process's part of a full state and of the current weights. `zero` is DeepSpeed's optimizer, and
        `state` is what :meth:`gather` returns. Raises ValueError if it has different groups.
        """
        groups = zip(self._groups, zero.optimizer.param_groups, state["param_groups"], strict=True)
        for parameters, settings, saved in groups:
            flat = settings["params"][0]
            settings.update({name: value for name, value in saved.items() if name != "params"})
            mine: dict[str, Any] = {}
            for number, parameter in zip(saved["params"], parameters, strict=True):
                _flatten(flat.detach(), parameter.detach(), parameter)
                for name, value in state["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        _flatten(mine.setdefault(name, torch.zeros_like(flat)), value, parameter)
                    else:
                        mine[name] = _copy(value)
            zero.optimizer.state[flat] = mine


def _slices(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """The slice of a parameter in this process's flat tensor, and its position there; None if there is none.

    DeepSpeed records it on the parameter for its own functions, such as `safe_get_full_optimizer_state`, which only
    handle the first group.
    """
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    whole, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(whole.start, whole.start + whole.numel), slice(flat.start, flat.start + flat.numel)


def _unflatten(flat: Tensor, parameter: nn.Parameter) -> Tensor:
    """Collect one parameter's values from the flat tensors of all processes."""
    found = torch.zeros(parameter.numel(), dtype=flat.dtype, device=parameter.device)
    if (slices := _slices(parameter)) is not None:
        found[slices[0]] = flat[slices[1]].to(found.device)
    torch.distributed.all_reduce(found)  # each value is nonzero in one process only
    return found.view(parameter.shape).cpu()


def _flatten(flat: Tensor, value: Tensor, parameter: nn.Parameter) -> None:
    """Copy this process's part of a full parameter into its flat tensor."""
    if (slices := _slices(parameter)) is not None:
        flat[slices[1]] = value.flatten()[slices[0]].to(flat)


def _copy(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
