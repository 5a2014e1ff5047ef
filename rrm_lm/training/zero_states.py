"""DeepSpeed's optimizer (ZeRO-1 and 2), its state whole as one process has it, and back.

Each process has a part of the float32 weights and of their moments, a flat tensor for each group of parameters. Such
parts fit the same number of processes alone, and the checkpoint that DeepSpeed writes has the frozen model in it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ZeroStates:
    """Puts an optimizer's state together, and takes it apart.

    Args:
        optimizer: Before DeepSpeed has it, which puts a flat parameter in place of each group's. No group is empty.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]

    def whole(self, zero: Any) -> dict[str, Any]:
        """What `state_dict` of one process's optimizer gives, on the CPU. Called by all processes.

        Args:
            zero: DeepSpeed's optimizer.
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
                    cut = isinstance(value, Tensor) and value.shape == flat.shape
                    state.setdefault(number, {})[name] = _joined(value, parameter) if cut else _copy(value)
        return {"state": state, "param_groups": groups}

    def load(self, zero: Any, state: dict[str, Any]) -> None:
        """Take this process's part of a whole state, and of the weights that the parameters have now.

        Args:
            zero: DeepSpeed's optimizer.
            state: As :meth:`whole` gives it.

        Raises:
            ValueError: The state has other groups.
        """
        groups = zip(self._groups, zero.optimizer.param_groups, state["param_groups"], strict=True)
        for parameters, settings, saved in groups:
            flat = settings["params"][0]
            settings.update({name: value for name, value in saved.items() if name != "params"})
            mine: dict[str, Any] = {}
            for number, parameter in zip(saved["params"], parameters, strict=True):
                _put(flat.detach(), parameter.detach(), parameter)
                for name, value in state["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        _put(mine.setdefault(name, torch.zeros_like(flat)), value, parameter)
                    else:
                        mine[name] = _copy(value)
            zero.optimizer.state[flat] = mine


def _places(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """Which numbers of a parameter are in this process's flat tensor, and where; none if none are.

    DeepSpeed notes it on the parameter, for such functions of its own as `safe_get_full_optimizer_state`, which knows
    the state of the first group alone.
    """
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    whole, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(whole.start, whole.start + whole.numel), slice(flat.start, flat.start + flat.numel)


def _joined(flat: Tensor, parameter: nn.Parameter) -> Tensor:
    """One parameter's numbers out of the flat tensors of all processes."""
    found = torch.zeros(parameter.numel(), dtype=flat.dtype, device=parameter.device)
    if (places := _places(parameter)) is not None:
        found[places[0]] = flat[places[1]].to(found.device)
    torch.distributed.all_reduce(found)  # each number is in one process, and zero in the others
    return found.view(parameter.shape).cpu()


def _put(flat: Tensor, value: Tensor, parameter: nn.Parameter) -> None:
    """The other way round: this process's numbers of a whole parameter's, into its flat tensor."""
    if (places := _places(parameter)) is not None:
        flat[places[1]] = value.flatten()[places[0]].to(flat)


def _copy(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
