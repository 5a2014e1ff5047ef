"""One tiny model, one file of feedback and one trained reward model, shared by all tests of a process."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.cli.main import main
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.saving.policies import POLICY, PolicySettings, save_policy
from tests.smoke.commands import pair_rows, write_rows
from tests.tiny import lora, save_tiny_model, tiny_tokenizer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the CPU; afterwards reset logging and environment variables (TrainingArguments sets those of FSDP)."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    variables = dict(os.environ)
    log = logging.getLogger("rrm_lm")
    level = log.level
    yield
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    log.handlers.clear()
    log.level = level


@pytest.fixture(autouse=True)
def _own_score_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that tests compute stay out of the user's cache and of other tests."""
    monkeypatch.setattr("rrm_lm.evaluation.preferences.score_cache.cache_home", lambda: tmp_path / "cache")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model and its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20 pairs with critiques and ratings."""
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pair_rows(20))


@dataclass(frozen=True)
class TrainedReward:
    """The output of one run of `rrm-lm reward --merge`."""

    folder: Path
    model: Path
    data: Path
    heldout: Path

    @property
    def merged(self) -> Path:
        return self.folder / "merged"


@pytest.fixture(scope="session")
def trained(tiny: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedReward:
    """A reward model on the tiny model, with a merged checkpoint. Tests must not change its folder."""
    root = tmp_path_factory.mktemp("trained")
    heldout = write_rows(root / "heldout.jsonl", pair_rows(12, seed=7))
    settings: dict[str, Any] = {
        "model_name_or_path": tiny,
        "dataset_name": pairs,
        "eval_dataset_name": heldout,
        "output_dir": root / "reward",
        "max_length": 160,
        "max_steps": 4,
        "warmup_steps": 0,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "merge": "true",
        "dtype": "float32",
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["reward", *words]) == 0
    return TrainedReward(root / "reward", tiny, pairs, heldout)


@pytest.fixture(scope="session")
def policy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random adapter on the tiny model."""
    torch.manual_seed(3)
    backbone = Backbone(load_causal_lm(str(tiny), dtype="float32"), pad_id=0)
    backbone.add_adapter(POLICY, lora())
    folder = tmp_path_factory.mktemp("policies") / "ppo"
    save_policy(backbone, folder, tiny_tokenizer(), PolicySettings(str(tiny), method="ppo"))
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/bench/gpu.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "bench"))
    return importlib.import_module("gpu")


@pytest.fixture
def jobs(gpu: Any) -> Any:
    return importlib.import_module("gpu_job")


@pytest.fixture
def sides(gpu: Any) -> Any:
    return importlib.import_module("gpu_sides")
