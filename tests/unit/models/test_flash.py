"""Attention without masks per token pair, as flash attention is: every path works, and gives the same results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rrm_lm.models.decoding import decoders
from rrm_lm.models.decoding.decoders import WholeDecoder
from rrm_lm.models.decoding.lean_decoder import LeanDecoder
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from tests.tiny_policy import logs, state, tiny_agent, trainer
from tests.unpadded import NAME, register, unregister


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register()
    yield
    unregister()


def test_training_is_that_of_sdpa(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows are padded instead of shared, which the log says; what is learned is the same."""
    found = {}
    for attention in ("sdpa", NAME):
        agent = tiny_agent(reward=True, attention=attention)
        made = trainer(tmp_path / attention, agent, samples_per_prompt=2, optim="sgd", max_grad_norm=0.1)
        made.train()
        assert agent.can_share == (attention == "sdpa")
        found[attention] = state(agent), logs(made)
    for name, parameter in found["sdpa"][0].items():
        torch.testing.assert_close(found[NAME][0][name], parameter, atol=1e-5, rtol=1e-4, msg=name)
    for mine, theirs in zip(found[NAME][1], found["sdpa"][1], strict=True):
        assert all(float(mine[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4) for key, value in theirs.items())
    assert f"Prefix sharing is off: {NAME} attention takes no mask per token pair" in caplog.text


@pytest.mark.parametrize("kind", [LeanDecoder, WholeDecoder])
def test_both_decoders_work(kind: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    if kind is WholeDecoder:
        monkeypatch.setattr(decoders, "LeanDecoder", lambda *args: (_ for _ in ()).throw(TypeError("other layers")))
    prompts = [[5, 6, 7, 8], [5, 6, 9], [10, 11, 12, 13, 14]]
    found, used = {}, []
    for attention in ("sdpa", NAME):
        agent = tiny_agent(attention=attention)
        call = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, *a, call=call: (used.append(kind), call(self, *a))[1])
        found[attention] = roll_out(
            agent.backbone, agent.policy_adapter, prompts, Sampling(20), end_ids=[2, 30, 40], num_return=3, seed=1
        )
        monkeypatch.setattr(kind, "__call__", call)
        assert used
        used.clear()
    assert found[NAME] == found["sdpa"]
    assert "Rollouts use .generate()" not in caplog.text
