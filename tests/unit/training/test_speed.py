"""Model FLOP utilization on GPUs whose speed is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.models.backbone import Backbone
from rrm_lm.training import speed
from rrm_lm.training.speed import layer_weights, peak, utilization
from tests.tiny import lora, tiny_model
from tests.tiny_policy import tiny_agent, trainer


def test_the_peak_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L40S": 362e12}
    for name, expected in {**names, "NVIDIA L4": 121e12, "NVIDIA L40": None, "NVIDIA H200 MIG 1g.18gb": None}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak(torch.device("cuda")) == expected
    assert peak(torch.device("cpu")) is None


def test_only_weights_of_the_layers_count() -> None:
    model = tiny_model()
    expected = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim > 1)
    assert layer_weights(model.model) == expected > 0
    backbone = Backbone(model, 0)
    backbone.add_adapter("one", lora())
    assert layer_weights(backbone.decoder) == expected


def test_it_is_a_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, device = tiny_model().model, torch.device("cpu")
    monkeypatch.setattr(speed, "peak", lambda device: 100.0 * layer_weights(decoder))
    assert utilization(decoder, 200.0, 4.0, device) == {"mfu": 0.5}
    assert utilization(decoder, 200.0, 0.0, device) == {}
    monkeypatch.setattr(speed, "peak", lambda device: None)
    assert utilization(decoder, 200.0, 4.0, device) == {}


def test_every_update_logs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak", lambda device: 1e9)
    agent = tiny_agent(reward=True)
    made = trainer(tmp_path, agent, max_steps=1)
    seen: list[Any] = []
    score = made.score
    made.score = lambda rollouts: (seen.append(rollouts), score(rollouts))[1]  # type: ignore[method-assign]
    made.train()
    (entry,) = [one for one in made.state.log_history if "mfu" in one]
    seconds = sum(float(value) for name, value in entry.items() if name.startswith("time/"))
    tokens = sum(len(line.ids) for line in seen[0].lines)
    operations = (2 * 4 + 4 * made.args.num_ppo_epochs) * layer_weights(agent.backbone.decoder) * tokens
    assert float(entry["mfu"]) == pytest.approx(operations / seconds / 1e9, rel=0.1)
