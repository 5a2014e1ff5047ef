"""`rrm_lm.PPOTrainer`: one call, with rewards and prompts of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import rrm_lm
from rrm_lm.errors import ConfigError, DataError

PROMPTS = [f"what is the {word} made of?" for word in ("moon", "sea", "story", "answer", "sun", "blue moon")]


def length(prompts: Any, responses: Any) -> list[float]:
    return [len(text) / 10 for text in responses]


def settings(folder: Path, **more: Any) -> rrm_lm.PPOConfig:
    values: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "response_length": 6, "lora_r": 4}
    values |= {"monitor_prompts": 1, "monitor_steps": 1, "learning_rate": 1e-2, "dtype": "float32"}
    return rrm_lm.PPOConfig(output_dir=str(folder), use_cpu=True, report_to="none", **{**values, **more})


def test_names_train_and_leave_what_the_command_leaves(
    policy_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trainer = rrm_lm.PPOTrainer(str(policy_folder), str(reward_folder), PROMPTS, settings(out))
    assert trainer.train().global_step == 2
    left = {path.name for path in out.iterdir()}
    assert left >= {"adapter_model.safetensors", "policy.json", "config.yaml", "run.json", "report.html"}
    assert json.loads((out / "run.json").read_text())["command"] == "rrm-lm policy"
    loaded = rrm_lm.Policy.from_pretrained(out, dtype="float32")
    again = {"max_new_tokens": 6, "temperature": 0}
    assert trainer.policy.respond(PROMPTS[0], **again) == loaded.respond(PROMPTS[0], **again)
    trainer.save_model(tmp_path / "copy")
    assert rrm_lm.Policy.from_pretrained(tmp_path / "copy", dtype="float32").respond(PROMPTS[0], **again)


def test_loaded_objects_functions_and_weights(policy_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    policy = rrm_lm.Policy.from_pretrained(policy_folder, dtype="float32")
    reward = rrm_lm.RewardModel.from_pretrained(reward_folder, dtype="float32")
    before = {n: p.detach().clone() for n, p in policy.loaded.backbone.named_parameters() if "lora_B" in n}
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append(1)

    args = settings(tmp_path / "out", reward_weights=[0.5, 2.0, 0.25])
    trainer = rrm_lm.PPOTrainer(
        policy,
        [length, str(reward_folder), reward],
        [[{"role": "user", "content": text}] for text in PROMPTS],
        args,
        eval_prompts=["who lives in the sea?"],
        gold=length,
        callbacks=[Count()],
    )
    sources = trainer.trainer.rewards
    weights = dict(zip([source.name for source in sources.sources], sources.weights, strict=True))
    assert weights == {"reward": 2.0, "length": 0.5, "reward_2": 0.25}
    trainer.train()
    assert len(steps) == 2
    own = {n: p for n, p in policy.loaded.backbone.named_parameters() if n in before}
    assert any(not torch.equal(before[n], p) for n, p in own.items())  # trained in place


def test_what_cannot_be_used_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reward to train on"):
        rrm_lm.PPOTrainer(str(tiny), [], PROMPTS, settings(tmp_path / "a"))
    with pytest.raises(ConfigError, match="A reward is a int"):
        rrm_lm.PPOTrainer(str(tiny), 3, PROMPTS, settings(tmp_path / "b"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no prompt"):
        rrm_lm.PPOTrainer(str(tiny), length, [], settings(tmp_path / "c"))


def test_a_policy_without_an_adapter_is_trained_in_place(tiny: Path, tmp_path: Path) -> None:
    policy = rrm_lm.Policy.from_pretrained(tiny, dtype="float32")
    assert policy.loaded.adapter is None
    trainer = rrm_lm.PPOTrainer(policy, length, PROMPTS, settings(tmp_path / "out", max_steps=1))
    trainer.train()
    again = {"max_new_tokens": 6, "temperature": 0}
    assert policy.loaded.adapter is not None
    assert policy.respond(PROMPTS, **again) == trainer.policy.respond(PROMPTS, **again)


def test_the_gold_reward_of_the_settings_monitors(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text("def f(prompts, completions, **kwargs):\n    return [1.0] * len(prompts)\n")
    named = {"gold": f"{tmp_path / 'gold.py'}:f", "stop_when_over_optimised": True}
    rrm_lm.PPOTrainer(str(tiny), length, PROMPTS, settings(tmp_path / "a", max_steps=1, **named)).train()
    rows = [json.loads(line) for line in (tmp_path / "a" / "over_optimisation.jsonl").read_text().splitlines()]
    assert all(sample["gold"] == 1.0 for row in rows for sample in row["samples"])
    given = settings(tmp_path / "b", stop_when_over_optimised=True)
    rrm_lm.PPOTrainer(str(tiny), length, PROMPTS, given, gold=length)
    with pytest.raises(ConfigError, match="no independent reward"):
        rrm_lm.PPOTrainer(str(tiny), length, PROMPTS, settings(tmp_path / "c", stop_when_over_optimised=True))
    (tmp_path / "requests.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="a file of data"):
        rrm_lm.PPOTrainer(str(tiny), length, PROMPTS, settings(tmp_path / "d", gold=str(tmp_path / "requests.jsonl")))
