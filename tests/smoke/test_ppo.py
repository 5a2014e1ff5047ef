"""End-to-end policy training on tiny models: a killed run, and training that starts from a policy folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from rrm_lm.models.agent import REFERENCE, AgentModel
from rrm_lm.models.agent_files import load_values
from rrm_lm.models.backbone import adapter_parameters
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.saving.policies import PolicySettings, load_policy, save_policy
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.tiny import lora, save_tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting, logs, state, tiny_agent, trainer

torch.set_num_threads(1)

SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "samples_per_prompt": 2,
    "kl_control": "adaptive",
    "normalize_rewards": True,
}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Killed by SIGKILL, without cleanup, during the update after a checkpoint."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "killed" / "working").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    newest = newest_verified(tmp_path / "killed")
    assert newest is not None and newest.name == "checkpoint-4"

    resumed = trainer(tmp_path / "killed", **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    straight = trainer(tmp_path / "straight", **SETTINGS)
    straight.train()
    assert logs(resumed) == logs(straight)
    for name, parameter in straight.agent.named_parameters():
        assert torch.equal(parameter, state(resumed.agent)[name]), name


def wait_to_be_killed(folder: Path) -> None:
    """Train up to the fifth update, report it, and wait there."""
    made = trainer(folder, **SETTINGS)
    score = made.score

    def scored(rollouts: Any) -> Any:
        if made.state.global_step == 4:
            (folder / "working").touch()
            time.sleep(300)
        return score(rollouts)

    made.score = scored  # type: ignore[method-assign]
    made.train()


def test_from_a_policy_folder_to_a_better_one(tmp_path: Path) -> None:
    """Starts from a trained policy, which is also the reference; the reward shares its backbone; PEFT loads it."""
    base = save_tiny_model(tmp_path / "base")
    start = tiny_agent()
    save_policy(start.backbone, tmp_path / "sft", CHAT.tokenizer, PolicySettings(str(base)))
    other = RewardModel.create(load_policy(str(base)).backbone, lora(), RewardSettings(str(base)))
    other.save(tmp_path / "reward", CHAT.tokenizer)

    policy = load_policy(tmp_path / "sft", trainable=True, dtype="float32")
    agent = AgentModel.create(policy.backbone, lora())
    assert agent.reference_adapter == REFERENCE
    agent.add_reward(put_reward(policy.backbone, tmp_path / "reward", chat=policy.chat))
    made = PPOTrainer(
        config(tmp_path / "ppo", max_steps=2),
        policy.chat.tokenizer,
        agent,
        train_dataset=PROMPTS,
        rewards=[PythonReward(counting)],
        chat=policy.chat,
        settings=PolicySettings(str(base), method="ppo"),
    )
    before = {name: p.detach().clone() for name, p in adapter_parameters(agent, REFERENCE).items()}
    made.train()
    assert abs(float(logs(made)[0]["objective/kl"])) < 1e-4  # it began as its reference
    assert abs(float(logs(made)[1]["objective/kl"])) > 1e-4
    assert all(torch.equal(p, before[name]) for name, p in adapter_parameters(agent, REFERENCE).items())

    made.save_model(str(tmp_path / "policy"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    ids = torch.tensor([CHAT.prompt_ids(PROMPTS[0])])
    with torch.no_grad(), agent.backbone.using("policy"):
        torch.testing.assert_close(loaded(input_ids=ids).logits, agent.backbone.causal_lm(input_ids=ids).logits)
    again = AgentModel.create(load_policy(tmp_path / "policy", trainable=True, dtype="float32").backbone, lora())
    load_values(again, tmp_path / "policy")
    assert torch.equal(again.value_head.weight, agent.value_head.weight)


if __name__ == "__main__":
    wait_to_be_killed(Path(sys.argv[1]))
