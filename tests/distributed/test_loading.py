"""Processes that load one model map its file, and do not each hold a copy."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "bench"))
    return importlib.import_module("loading")


def test_two_processes_hold_one_model_besides_their_shards(loading: Any, tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 8}
    parameters = loading.save_random(str(tmp_path), **shape, vocab_size=8000)
    found = loading.measure(str(tmp_path), "float32", parameters)
    assert found["model"] > 150e6
    assert 0.9 < found["after"] / found["model"] < 1.3  # the shards
    assert found["peak_without_shards"] < 1.3
