"""Two real processes with DeepSpeed's ZeRO-2, started with configs/accelerate/zero2.yaml, give the same results as one.

On the CPU, through gloo. DeepSpeed is no dependency of this project: `pip install deepspeed` to run this.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.launch.signals import exit_process
from rrm_lm.models.agent_files import load_agent
from rrm_lm.models.reward_files import load_reward_model
from rrm_lm.training import arguments
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.sft import config as sft_config
from rrm_lm.training.sft.config import SFTConfig
from tests.distributed.processes import launch
from tests.distributed.test_sharded import (
    BREAK,
    LAYERS,
    close,
    learned,
    losses,
    policy_on,
    resumed_policies,
    resumed_rewards,
    reward_trainer,
    scores,
    together,
)
from tests.distributed.trl_runs import RUNS
from tests.tiny import save_tiny_model, tiny_chat
from tests.tiny_policy import tiny_agent

torch.set_num_threads(1)

# With `use_cpu`, Accelerate would leave DeepSpeed out; and without a GPU, a backend must be named.
HERE: dict[str, Any] = {"use_cpu": False, "ddp_backend": "gloo"}
# One step a pass in one piece, whose first pass is the one that gave the old log-probabilities; and several of each.
POLICIES: dict[str, dict[str, Any]] = {"many": {}, "one": {"num_mini_batches": 1, "micro_batch_tokens": 4096}}


def on_two(folder: Path, base: Path) -> dict[str, Any]:
    """The results of one of the two processes."""
    made = reward_trainer(folder / "reward", base, 2, **HERE)
    made.train()
    assert made.accelerator.distributed_type == "DEEPSPEED" and made.accelerator.num_processes == 2
    model = made.accelerator.unwrap_model(made.model)
    found: dict[str, Any] = {"losses": losses(made), "learned": learned(model)}
    found["share"] = sum(p.numel() for g in made.optimizer.param_groups for p in g["params"]) / sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    made.save_model(str(folder / "reward"))
    found["scores"] = scores(RewardScorer(model, tiny_chat(), micro_batch_tokens=1))
    found["again"] = resumed_rewards(folder / "again", base, 2, **HERE)
    found["policies"] = {name: policy_on(folder / name, 2, **HERE, **more) for name, more in POLICIES.items()}
    found["policy again"] = resumed_policies(folder / "policy again", 2, **HERE)
    found["trl"] = {name: run(folder / name, base, LAYERS, 2, **HERE) for name, run in RUNS.items()}
    assert "ACCELERATE_USE_CPU" not in os.environ and PartialState().distributed_type == "DEEPSPEED"
    return found


pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", layers=LAYERS)
    launch(__file__, tmp_path, config="zero2", timeout=380)
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    check_rewards(both, tmp_path, base)
    check_policies(both, tmp_path)
    for name, run in RUNS.items():
        one = run(tmp_path / f"one {name}", base, LAYERS, 1)
        for found in both:
            close(found["trl"][name]["learned"], one["learned"], 1e-4)


def check_rewards(both: list[dict[str, Any]], folder: Path, base: Path) -> None:
    one = reward_trainer(folder / "one", base, 1)
    one.train()
    model, chat = load_reward_model(folder / "reward", dtype="float32")
    saved = scores(RewardScorer(model, chat, micro_batch_tokens=1))
    for found in both:
        assert found["share"] == pytest.approx(0.5, abs=0.01)  # of the optimizer's numbers
        close(found["losses"], losses(one), 1e-5)
        close(found["learned"], learned(one.model), 1e-4)
        assert found["scores"] == saved
        close(found["again"][1], found["again"][0], 0.0)
    # One process goes on from DeepSpeed's checkpoint, which has the files that any has.
    alone = resumed_rewards(folder / "again", base, 1, BREAK[1:], allow_world_size_change=True)
    close(alone[0], both[0]["again"][0], 1e-4)
    names = {file.name for file in (folder / "again" / "checkpoint-2").iterdir()}
    assert "optimizer.pt" in names and not any(name.startswith("global_step") for name in names)


def check_policies(both: list[dict[str, Any]], folder: Path) -> None:
    for name, more in POLICIES.items():
        one = policy_on(folder / f"one {name}", 1, **more)
        parts = [found["policies"][name] for found in both]
        close(together([part["kept"] for part in parts]), one["kept"], 1e-4)
        for part in parts:
            close(part["learned"], one["learned"], 1e-4)
            close(part["probe"], one["probe"], 1e-4)
        close(parts[0]["logs"], one["logs"], 1e-4)
        agent = tiny_agent(value="adapter", reward=True, layers=LAYERS)
        load_agent(agent, folder / name / "saved")
        close(learned(agent), parts[0]["learned"], 0.0)
    for found in both:
        close(found["policy again"][1], found["policy again"][0], 0.0)


@pytest.mark.parametrize("settings", [RewardConfig, SFTConfig, PPOConfig])
def test_the_third_stage_is_refused_before_a_model_is_loaded(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    try:
        with pytest.raises(ConfigError, match="ZeRO stage 3"):
            settings(output_dir=str(tmp_path), use_cpu=True)
    finally:
        unset_hf_deepspeed_config()


if __name__ == "__main__":
    # Its own collectives in shared memory are C++, which it would compile first.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # pyright: ignore
    # Of a machine without GPUs they tell Accelerate, which leaves DeepSpeed out there.
    for module in (arguments, sft_config):
        setattr(module, "default_device", lambda: torch.device("meta"))  # noqa: B010
    out = Path(sys.argv[1])
    result = on_two(out, out / "base")
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
    exit_process(0)
