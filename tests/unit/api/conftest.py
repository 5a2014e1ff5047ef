"""A tiny backbone in a folder, and what was saved on it, for all tests of the public classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import POLICY, PolicySettings, save_policy
from tests.tiny import lora, save_tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model and its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def _backbone(folder: Path) -> Backbone:
    model: Any = load_causal_lm(str(folder), dtype="float32")
    torch.manual_seed(3)
    return Backbone(model, pad_id=0)


@pytest.fixture(scope="session")
def reward_folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random LoRA weights."""
    folder = tmp_path_factory.mktemp("rewards") / "reward"
    RewardModel.create(_backbone(tiny), lora(), RewardSettings(str(tiny))).save(folder, tiny_tokenizer())
    return folder


@pytest.fixture(scope="session")
def policy_folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random LoRA weights."""
    folder = tmp_path_factory.mktemp("policies") / "policy"
    backbone = _backbone(tiny)
    backbone.add_adapter(POLICY, lora())
    save_policy(backbone, folder, tiny_tokenizer(), PolicySettings(str(tiny)))
    return folder
