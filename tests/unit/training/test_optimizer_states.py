"""An optimizer's state cut as DeepSpeed cuts it, made whole, cut again. With DeepSpeed itself: tests/distributed/."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rrm_lm.training.optimizer_states import ZeroStates, gather_state, shard_state

SHAPES: list[list[tuple[int, ...]]] = [[(2, 3), (5,)], [(4, 2)]]  # of each group
STATES = ("exp_avg", "exp_avg_sq")


def stepped() -> torch.optim.Adam:
    """Two steps of Adam on parameters of these shapes."""
    torch.manual_seed(0)
    groups = [{"params": [nn.Parameter(torch.randn(shape)) for shape in shapes]} for shapes in SHAPES]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    optimizer.param_groups[1]["lr"] = 0.2
    for _ in range(2):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return optimizer


def cut(optimizer: torch.optim.Adam, process: int) -> tuple[ZeroStates, Any]:
    """What DeepSpeed makes of an optimizer on one of two processes."""
    states = ZeroStates(optimizer)
    for group in optimizer.param_groups:
        parameters = group["params"]
        half = -(-sum(parameter.numel() for parameter in parameters) // 2)

        def part(tensors: list[Tensor], half: int = half) -> Tensor:
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            return nn.functional.pad(flat, (0, 2 * half - len(flat)))[process * half :][:half].clone()

        flat = nn.Parameter(part(parameters))
        moments = {name: part([optimizer.state[parameter][name] for parameter in parameters]) for name in STATES}
        moments["step"] = optimizer.state[parameters[0]]["step"].clone()
        first = -process * half  # of a parameter, in this process's flat tensor
        for parameter in parameters:
            begin, end = max(0, first), min(half, first + parameter.numel())
            addresses = (SimpleNamespace(start=start, numel=end - begin) for start in (begin - first, begin))
            lp, hp = addresses
            mapping = SimpleNamespace(lp_fragment_address=lp, hp_fragment_address=hp) if begin < end else None
            parameter._hp_mapping = mapping
            first += parameter.numel()
            del optimizer.state[parameter]
        optimizer.state[flat], group["params"] = moments, [flat]
    return states, SimpleNamespace(optimizer=optimizer)


def added(parts: list[Any]) -> Any:
    """What two processes' parts sum to; what is no part is the same in both."""
    one, two = parts
    if isinstance(one, dict):
        return {key: added([one[key], two[key]]) for key in one}
    return one + two if isinstance(one, Tensor) and one.dim() else one


def test_the_parts_are_what_one_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)  # summed below
    parts = [states.gather(zero) for states, zero in (cut(stepped(), process) for process in (0, 1))]
    expected = stepped().state_dict()
    found = added(parts)
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], atol=0, rtol=0)


def test_each_process_takes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the weights, which a checkpoint has put into the parameters before."""
    expected = stepped().state_dict()
    for process in (0, 1):
        states, zero = cut(stepped(), process)
        wanted = [(group["params"][0].detach().clone(), group["lr"]) for group in zero.optimizer.param_groups]
        moments = [dict(zero.optimizer.state[group["params"][0]]) for group in zero.optimizer.param_groups]
        for group in zero.optimizer.param_groups:
            group["params"][0].data.zero_()
            group["lr"] = 0.0
        zero.optimizer.state.clear()
        states.load(zero, expected)
        for group, (weights, rate), state in zip(zero.optimizer.param_groups, wanted, moments, strict=True):
            flat = group["params"][0]
            assert torch.equal(flat, weights) and group["lr"] == rate
            torch.testing.assert_close(zero.optimizer.state[flat], state, atol=0, rtol=0)


def test_a_state_of_other_groups_is_refused() -> None:
    states, zero = cut(stepped(), 0)
    with pytest.raises(ValueError):
        states.load(zero, {"state": {}, "param_groups": []})


class Shard(Tensor):
    """Half of a tensor, for what asks a shard for the whole one."""

    def full_tensor(self) -> Tensor:
        return torch.cat([self.as_subclass(Tensor)] * 2)


def test_an_optimizers_state_is_whole_on_disk() -> None:
    state: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2).as_subclass(Shard)}},
        "param_groups": [{"lr": 0.1, "params": [0, 1]}],
    }
    whole = gather_state(state)
    assert type(whole["state"][0]["exp_avg"]) is Tensor and len(whole["state"][0]["exp_avg"]) == 4
    assert whole["param_groups"] == state["param_groups"]
    plain = [{"params": [torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(1))]}]
    back = shard_state(whole, plain)
    assert torch.equal(back["state"][0]["exp_avg"], torch.ones(4)) and 1 not in back["state"]
