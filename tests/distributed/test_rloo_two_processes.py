"""Two real processes (gloo, on the CPU) train the same policy with RLOO as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rrm_lm.launch.signals import exit_process
from rrm_lm.models.agent import POLICY
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import Policy
from rrm_lm.training.reward_sources import AdapterReward, PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from tests.smoke.launches import free_port
from tests.tiny import lora, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting

torch.set_num_threads(1)


def backbone() -> Backbone:
    made = Backbone(tiny_model(), pad_id=0)
    torch.manual_seed(1)
    made.add_adapter(POLICY, lora())
    return made


def train(folder: Path, processes: int) -> RLOOTrainer:
    """Three updates of eight episodes, with an ensemble on the same backbone as one of two rewards."""
    trunk = backbone()
    own = RewardModel.create(trunk, lora(), RewardSettings("tiny", ensemble_heads=3))
    own.requires_grad_(False)
    settings = config(
        folder,
        per_device_train_batch_size=8 // processes,
        samples_per_prompt=2,
        num_ppo_epochs=2,
        micro_batch_tokens=60,
        max_steps=3,
        temperature=0.5,
        stop_token_id=352,  # which this model often writes: responses end early, and not in step
        optim="sgd",
        learning_rate=0.02,
        max_grad_norm=0.1,
        missing_eos_penalty=0.5,
        max_kl=100.0,
        save_strategy="steps",
        save_steps=3,
    )
    rewards = RewardSum([AdapterReward(own), PythonReward(counting)], [0.5, 1.0])
    made = RLOOTrainer(Policy(trunk, CHAT, POLICY), settings, rewards, PROMPTS)
    made.train()
    return made


def logs(made: RLOOTrainer) -> list[dict[str, float]]:
    names = ("objective/", "reward", "disagreement/", "kl", "val/")
    found = [entry for entry in made.state.log_history if "objective/kl" in entry]
    return [{name: float(value) for name, value in one.items() if name.startswith(names)} for one in found]


def learned(made: RLOOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in adapter_parameters(made.backbone, POLICY).items()}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    port = free_port()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    done = subprocess.run(
        [*launch, __file__, tmp_path],
        env={**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(tmp_path / "one", 1)
    both = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    begun = adapter_parameters(backbone(), POLICY)
    for name, parameter in learned(one).items():
        assert float((parameter - begun[name]).detach().abs().max()) > 1e-6, name
        for other in both:
            torch.testing.assert_close(other["learned"][name], parameter, atol=2e-6, rtol=1e-5, msg=name)
    assert len(logs(one)) == len(both[0]["logs"]) == 3
    for mine, theirs in zip(both[0]["logs"], logs(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert (tmp_path / "two" / "checkpoint-6" / "rng_state_1.pth").is_file()


if __name__ == "__main__":
    out = Path(sys.argv[1])
    done = train(out / "two", 2)
    assert done.accelerator.num_processes == 2
    found = {"learned": learned(done), "logs": logs(done)}
    torch.save(found, out / f"rank{done.accelerator.process_index}.pt")
    exit_process(0)
