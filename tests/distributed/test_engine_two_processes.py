"""Two real processes (gloo, on the CPU) whose responses are sampled by one server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.errors import TrainingError
from rrm_lm.launch.signals import exit_process
from rrm_lm.models.decoding.generation import own_seed
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.ppo.trainer import PPOTrainer
from tests.distributed.processes import launch
from tests.rollout_server import rollout_server
from tests.tiny_policy import logs, tiny_agent, trainer

torch.set_num_threads(1)
SEED = 42
DYING = own_seed(SEED * 1_000_003 + 2, (0,), 0)  # of the third update's first prompt, which the first process sends


def train(folder: Path, url: str, processes: int, updates: int) -> PPOTrainer:
    made = trainer(
        folder, tiny_agent(), rollouts="server", rollout_url=url, per_device_train_batch_size=8 // processes,
        samples_per_prompt=2, max_steps=updates, optim="sgd", learning_rate=0.02, seed=SEED, save_strategy="steps",
        save_steps=100,
    )  # fmt: skip
    made.train()
    return made


def learned(made: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in made.agent.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_process_sends_its_own_prompts_and_all_fail_together(tmp_path: Path) -> None:
    with rollout_server() as server:

        def change(reply: dict[str, Any]) -> dict[str, Any]:
            if server.asked[-1]["seed"] == DYING:
                raise ConnectionError
            return reply

        server.change = change
        launch(__file__, tmp_path, server.url)
        assert [name.split("-update-")[1] for name in server.pushed] == ["0", "1", "0", "1", "2"]  # once each
        assert server.loaded == []
        one = train(tmp_path / "one", server.url, 1, 2)
    both = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for found in both:
        for name, parameter in learned(one).items():
            torch.testing.assert_close(found["learned"][name], parameter, atol=2e-6, rtol=1e-5, msg=name)
        assert "does not answer" in found["error"] and "/v1/completions" in found["error"]
    for mine, theirs in zip(both[0]["logs"], logs(one), strict=True):
        assert {key: float(value) for key, value in mine.items()} == pytest.approx(
            {key: float(value) for key, value in theirs.items()}, rel=1e-3, abs=1e-5
        )
    newest = newest_verified(tmp_path / "dying")
    assert newest is not None and newest.name == "checkpoint-2"


def main(folder: Path, url: str) -> int:
    made = train(folder / "two", url, 2, 2)
    found: dict[str, Any] = {"learned": learned(made), "logs": logs(made)}
    with pytest.raises(TrainingError) as error:
        train(folder / "dying", url, 2, 4)
    torch.save(found | {"error": str(error.value)}, folder / f"rank{os.environ['RANK']}.pt")
    return 0


if __name__ == "__main__":
    exit_process(main(Path(sys.argv[1]), sys.argv[2]))
