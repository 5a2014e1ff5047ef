"""A run that was cut off goes on as if it had not been."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from rrm_lm.errors import CheckpointError
from rrm_lm.models.agent_files import load_agent
from rrm_lm.storage import verify
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.ppo.trainer import PPOTrainer
from tests.precision import Precision
from tests.tiny_policy import logs, state, tiny_agent, trainer

torch.set_num_threads(1)

SETTINGS: dict[str, Any] = {
    "max_steps": 5,
    "save_strategy": "steps",
    "save_steps": 2,
    "samples_per_prompt": 2,
    "num_mini_batches": 2,
    "kl_control": "adaptive",
    "kl_target": 0.5,
    "normalize_rewards": True,
    "lr_scheduler_type": "cosine",
    "max_kl": 1e6,
    "top_p": 0.95,
}


class Killed(Exception):
    pass


class Killer(TrainerCallback):
    """Kills the run in the middle of an update, after the checkpoint of the one before."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise Killed


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_resuming_equals_never_stopping_bit_for_bit(value: str, tmp_path: Path, precision: Precision) -> None:
    straight = trainer(tmp_path / "straight", tiny_agent(value=value), **SETTINGS)
    straight.train()

    with pytest.raises(Killed):
        trainer(tmp_path / "cut", tiny_agent(value=value), callbacks=[Killer()], **SETTINGS).train()
    newest = newest_verified(tmp_path / "cut")
    assert newest is not None and newest.name == "checkpoint-2"

    other = tiny_agent(value=value)
    with torch.no_grad():  # whatever it held before
        for parameter in other.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    np.random.seed(7)
    torch.manual_seed(7)
    resumed = trainer(tmp_path / "cut", other, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == straight.state.global_step == 5
    for name, parameter in straight.agent.named_parameters():
        assert torch.equal(parameter, state(other)[name]), name
    assert logs(resumed) == logs(straight)
    assert resumed.steering == straight.steering
    assert resumed.state.episode == straight.state.episode == 20
    left, right = (made.optimizer.state_dict()["state"] for made in (straight, resumed))  # type: ignore[union-attr]
    assert left.keys() == right.keys() and left
    assert all(torch.equal(left[key]["exp_avg_sq"], right[key]["exp_avg_sq"]) for key in left)
    assert resumed.last_good.weights is not None and straight.last_good.weights is not None
    assert all(torch.equal(resumed.last_good.weights[name], kept) for name, kept in straight.last_good.weights.items())


def test_the_last_good_policy_outlives_the_interruption(tmp_path: Path) -> None:
    """Too far already when it goes on: what is put back is what an uninterrupted run would put back."""
    first = trainer(tmp_path, tiny_agent(), **{**SETTINGS, "max_steps": 2})
    kept: list[Any] = []
    update = first.update
    first.update = lambda *more: kept.append(state(first.agent)) or update(*more)  # type: ignore[method-assign]
    first.train()
    agent = tiny_agent()
    second = trainer(tmp_path, agent, **{**SETTINGS, "max_kl": 1e-6})
    second.train(resume_from_checkpoint=True)
    assert second.stop_reason is not None
    assert all(torch.equal(parameter, kept[-1][name]) for name, parameter in agent.named_parameters())


def test_a_checkpoint_is_whole_and_holds_everything(tmp_path: Path) -> None:
    trainer(tmp_path, **SETTINGS).train()
    checkpoint = tmp_path / "checkpoint-4"
    assert verify(checkpoint) == []
    held = {path.name for path in checkpoint.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "value.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "ppo_state.json",
        "last_good.safetensors",
        "tokenizer_config.json",
    } <= held
    assert json.loads((checkpoint / "trainer_state.json").read_text())["episode"] == 16


def test_a_saved_model_has_the_policy_and_its_values(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    made.train()
    made.save_model(str(tmp_path / "saved"))
    held = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"adapter_model.safetensors", "policy.json", "value.safetensors"} <= held and "optimizer.pt" not in held
    other = tiny_agent(seed=1)
    with pytest.raises(AssertionError):
        assert_same(made, other)
    load_agent(other, tmp_path / "saved")
    assert_same(made, other)


def assert_same(made: PPOTrainer, other: Any) -> None:
    trained = {name for name, p in made.agent.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, state(made.agent)[n]) for n, p in other.named_parameters() if n in trained)


def test_a_checkpoint_of_another_agent_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, **SETTINGS).train()
    with pytest.raises(CheckpointError, match="does not fit"):
        trainer(tmp_path, tiny_agent(value="adapter"), **SETTINGS).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        trainer(tmp_path / "new", **SETTINGS).train(resume_from_checkpoint=True)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, **SETTINGS)
    save = torch.save

    def full(what: Any, file: Any, *more: Any, **options: Any) -> None:
        if made.state.global_step == 4 and "optimizer" in os.fspath(file):
            raise OSError(28, "No space left on device")
        save(what, file, *more, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises((CheckpointError, OSError), match=r"No space left|disk"):
        made.train()
    newest = newest_verified(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
