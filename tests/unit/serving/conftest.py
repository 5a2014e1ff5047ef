"""A tiny reward model, and the application that serves it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

import rrm_lm
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.serving.app import create_app
from rrm_lm.serving.models import Served, load_models
from rrm_lm.settings.serving import ServeArguments
from tests.templates import TEMPLATES, family_tokenizer
from tests.tiny import lora, save_tiny_model


def save_reward(folder: Path, name: str = "chatml", *, seed: int = 3, **settings: Any) -> Path:
    """A reward model with random weights, whose tokenizer has the chat template of a family."""
    tokenizer = family_tokenizer(name)
    base = folder.parent / f"{name}-base"
    if not base.is_dir():
        save_tiny_model(base, TEMPLATES[name].architecture, tokenizer=tokenizer)
    model: Any = load_causal_lm(str(base), dtype="float32")
    torch.manual_seed(seed)
    adapter = lora(TEMPLATES[name].architecture)
    reward = RewardModel.create(Backbone(model, pad_id=0), adapter, RewardSettings(str(base), **settings))
    reward.save(folder, tokenizer)
    return folder


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward(tmp_path_factory.mktemp("served") / "mine")


@pytest.fixture(scope="session")
def models(reward_folder: Path) -> dict[str, Served]:
    return load_models(ServeArguments(model=[str(reward_folder)]))


@pytest.fixture
def client(models: dict[str, Served]) -> Iterator[TestClient]:
    with TestClient(create_app(models, ServeArguments())) as made:
        yield made


@pytest.fixture(scope="session")
def reward(reward_folder: Path) -> rrm_lm.RewardModel:
    return rrm_lm.RewardModel.from_pretrained(reward_folder)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application that is served on loopback, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
