"""What launches are refused, and what is read of FSDP2's own state. What sharding does is in tests/distributed/."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rrm_lm.errors import ConfigError
from rrm_lm.models import sharding
from rrm_lm.models.pretrained import default_device
from rrm_lm.models.sharding import full_copy_fits, shards_models


def launched(**plugins: Any) -> Any:
    state = SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None)
    vars(state).update({f"{name}_plugin": SimpleNamespace(**settings) for name, settings in plugins.items()})
    return SimpleNamespace(state=state, num_processes=2, is_fsdp2=True, device=default_device())


@pytest.mark.parametrize("stage", [0, 3])
def test_deepspeed_that_takes_weights_away_is_refused(stage: int) -> None:
    with pytest.raises(ConfigError, match=f"ZeRO stage {stage}") as error:
        shards_models(launched(deepspeed={"zero_stage": stage}))
    assert "fsdp2.yaml" in str(error.value.remedy) and "zero2.yaml" in str(error.value.remedy)


def test_the_first_fsdp_is_refused() -> None:
    with pytest.raises(ConfigError, match="first version of FSDP"):
        shards_models(launched(fsdp={"fsdp_version": 1}))


def test_a_machine_with_a_gpu_does_not_shard_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = launched(fsdp={"fsdp_version": 2})
    monkeypatch.setattr(sharding, "default_device", lambda: torch.device("cuda"))
    made.device = torch.device("cpu")
    with pytest.raises(ConfigError, match="CPU of a machine with a GPU"):
        shards_models(made)


def test_others_are_taken() -> None:
    assert not shards_models(launched()) and not shards_models(launched(deepspeed={"zero_stage": 2}))
    assert shards_models(launched(fsdp={"fsdp_version": 2}))


class Unreachable:
    def mem_get_info(self) -> Any:
        raise AssertionError("asked for a device's memory")


def copy_fits(monkeypatch: pytest.MonkeyPatch, memory: Any, device: str = "cuda", sharded: bool = True) -> bool:
    """For a model of two times 8 GB, of which a process holds parts."""
    part = SimpleNamespace(device=torch.device(device), numel=lambda: 4e9, element_size=lambda: 2)
    monkeypatch.setattr(sharding, "device_of", lambda parameter: parameter.device)
    monkeypatch.setattr(sharding, "is_sharded", lambda module: sharded)
    monkeypatch.setattr(torch, "get_device_module", lambda name: memory if name == device else None)
    model: Any = SimpleNamespace(parameters=lambda: iter([part, part]))
    return full_copy_fits(model)


def test_a_full_copy_needs_room_for_every_parameter_and_a_fifth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu(free: float, reserved: float = 12e9, allocated: float = 9e9) -> Any:
        known = {"mem_get_info": (free, 80e9), "memory_reserved": reserved, "memory_allocated": allocated}
        return SimpleNamespace(**{name: lambda value=value: value for name, value in known.items()})

    needed = 1.2 * 2 * 8e9
    assert copy_fits(monkeypatch, gpu(needed - 3e9 + 1e6))  # 3 GB are reserved and not allocated
    assert not copy_fits(monkeypatch, gpu(needed - 3e9 - 1e6))
    assert not copy_fits(monkeypatch, gpu(needed - 1e6, reserved=9e9))


def test_a_model_on_the_cpu_or_whole_on_its_device_has_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert copy_fits(monkeypatch, Unreachable(), device="cpu")
    assert copy_fits(monkeypatch, Unreachable(), sharded=False)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist: Any = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def parameters_are_free(unit: nn.Module) -> bool:
    return all(isinstance(parameter, DTensor) for parameter in unit.parameters(recurse=False))


@pytest.mark.usefixtures("alone")
def test_which_units_free_their_parameters_is_read_as_fsdp_does_it() -> None:
    """FSDP2 has no getter, so a private attribute is read: it must say what a forward pass then does."""
    root: Any = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    mesh = init_device_mesh("cpu", (1,))
    for layer, frees in zip(root, (True, False, True), strict=True):
        fully_shard(layer, mesh=mesh, reshard_after_forward=frees)
    fully_shard(root, mesh=mesh)
    for expected in ([True, False, True], [False, True, True], [False, False, False]):
        for layer, frees in zip(root, expected, strict=True):
            layer.set_reshard_after_forward(frees, recurse=False)
            layer.reshard()
        assert [sharding._frees_after_forward(layer) for layer in root] == expected
        assert all(map(parameters_are_free, root))
        with torch.no_grad():
            root(torch.ones(1, 4))
        assert [parameters_are_free(layer) for layer in root] == expected
