"""`--compile_layers true`: each layer is compiled, for any length and role, and training learns the same.

The backend is `aot_eager`, which compiles forward and backward passes without a C++ compiler.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from rrm_lm.errors import ConfigError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.sharding import configure_fsdp
from rrm_lm.training.reward.config import RewardConfig
from tests.precision import Precision
from tests.tiny_policy import logs, state, tiny_agent, trainer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the backend, and counts the compiled versions of a layer."""
    versions: list[int] = []
    own = Backbone.compile_layers

    def counted(graph: Any, inputs: Any) -> Any:
        versions.append(len(inputs))
        return aot_eager(graph, inputs)

    torch.compiler.reset()
    monkeypatch.setattr(Backbone, "compile_layers", lambda self: own(self, counted))  # type: ignore[arg-type]
    return versions


def test_ppo_learns_the_same(tmp_path: Path, backend: list[int], precision: Precision) -> None:
    found = {}
    for compiled in (False, True):
        agent = tiny_agent(value="adapter", reward=True, layers=4)
        more: dict[str, Any] = {"samples_per_prompt": 2, "optim": "sgd", "max_grad_norm": 0.1, "max_steps": 3}
        made = trainer(tmp_path, agent, compile_layers=compiled, **more)
        assert agent.backbone.is_compiled == compiled
        made.train()
        found[compiled] = state(agent), logs(made)
        assert bool(backend) == compiled
    begun = state(tiny_agent(value="adapter", reward=True, layers=4))
    precision.same_change(found[False][0], found[True][0], begun, 1e-5)
    close: Any = {"rel": precision.bound(1e-3), "abs": precision.bound(1e-4)}
    for mine, theirs in zip(found[True][1], found[False][1], strict=True):
        assert all(float(mine[key]) == pytest.approx(float(value), **close) for key, value in theirs.items())
    # Versions are for roles, gradients and first or later layers; not for layers, lengths or steps.
    assert len(backend) <= 16


def test_results_that_are_compared_bit_for_bit_are_not_compiled(backend: list[int]) -> None:
    agent = tiny_agent()
    ids = [[5, 6, 7]]
    options: dict[str, Any] = {"end_ids": [], "seed": 1}
    before = agent.roll_out(ids, Sampling(8), **options)
    agent.backbone.compile_layers()
    assert agent.roll_out(ids, Sampling(8), **options) == before
    with agent.backbone.uncompiled():
        agent.backbone.decoder(input_ids=torch.tensor(ids))
    assert backend == []
    agent.backbone.decoder(input_ids=torch.tensor(ids))
    assert backend != []


def test_layers_that_recompute_are_not_compiled(tmp_path: Path) -> None:
    both: dict[str, Any] = {"compile_layers": True, "activation_checkpointing": True}
    with pytest.raises(ConfigError, match="cannot trace layers that recompute"):
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **both)


def test_layers_that_the_launch_recomputes_are_not_compiled(backend: list[int]) -> None:
    plugin = SimpleNamespace(fsdp_version=2, transformer_cls_names_to_wrap=None, activation_checkpointing=True)
    state, cpu = SimpleNamespace(fsdp_plugin=plugin), torch.device("cpu")
    launch = SimpleNamespace(state=state, num_processes=2, device=cpu, is_fsdp2=True, native_amp=False)
    configure_fsdp(launch, tiny_agent())
    assert plugin.activation_checkpointing is False  # ours recomputes in its place
    plugin.activation_checkpointing, agent = True, tiny_agent()
    agent.backbone.compile_layers()
    with pytest.raises(ConfigError, match="cannot trace layers that recompute") as raised:
        configure_fsdp(launch, agent)
    assert "fsdp_activation_checkpointing" in raised.value.where


def test_the_whole_model_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch_compile cannot be used here") as raised:
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", torch_compile=True)
    assert "compile_layers" in raised.value.expected
