"""Two real processes (gloo, on the CPU) train the same policy as one, and exchange gradients of trained weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from rrm_lm.launch.signals import exit_process
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.distributed.processes import counting_bytes, launch
from tests.tiny_policy import counting, logs, tiny_agent, trainer

torch.set_num_threads(1)
# Tokens of each; of one the first pass keeps its graph.
MICRO_BATCHES = {"many": 25, "one": 4096, "drawn": 25, "parts": 25}
MORE: dict[str, dict[str, Any]] = {
    # This model often writes this token: responses end early, out of step.
    "drawn": {"temperature": 0.5, "stop_token_id": 352},
    # A process may have no episode of a mini-batch, or the same ones again when the other one has not.
    "parts": {"num_mini_batches": 4, "num_ppo_epochs": 2},
}


def train(folder: Path, processes: int, run: str, resume: Path | None = None) -> PPOTrainer:
    """Three updates of eight episodes, unevenly distributed over processes and micro-batches.

    The policy draws its responses in the run `drawn`; in the others they are given, with lengths from 1 to 6.
    """
    agent = tiny_agent(value="adapter", reward=True)
    made = trainer(
        folder,
        agent,
        per_device_train_batch_size=8 // processes,
        samples_per_prompt=2,
        micro_batch_tokens=MICRO_BATCHES[run],
        max_steps=3,
        optim="sgd",
        learning_rate=0.02,
        max_grad_norm=0.1,
        whiten_rewards=True,
        normalize_rewards=True,
        kl_control="adaptive",
        kl_target=0.1,
        missing_eos_penalty=0.5,
        save_strategy="steps",
        save_steps=1,
        rewards=[PythonReward(counting)],
        **MORE.get(run, {}),
    )
    if run != "drawn":
        agent.roll_out = responses  # type: ignore[method-assign]
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


def responses(prompts: Sequence[Sequence[int]], sampling: Any, *, num_return: int, **_: Any) -> list[list[list[int]]]:
    """Responses are a function of the prompt, so that they do not depend on the process."""
    found = []
    for ids in prompts:
        generator = torch.Generator().manual_seed(sum(ids))
        lengths = torch.randint(1, 7, (num_return,), generator=generator).tolist()
        found.append([torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths])
        found[-1][0][-1] = 2
    return found


def learned(made: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in made.agent.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    both = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name in MICRO_BATCHES:
        steps = 8 if name == "parts" else 2
        check([found[name] for found in both], train(tmp_path / f"{name} of one", 1, name), steps)
        assert (tmp_path / name / "checkpoint-3" / "rng_state_1.pth").is_file()
    for found in both:  # on from the first update, bit for bit
        assert found["again"].keys() == found["one"]["learned"].keys()
        assert all(torch.equal(found["again"][name], value) for name, value in found["one"]["learned"].items())
    # A pass that is kept is not made again: of the two epochs of three updates, three passes less.
    assert [found["many"]["fewer"] for found in both] == [0, 0] and [found["one"]["fewer"] for found in both] == [3, 3]


def check(both: Sequence[dict[str, Any]], one: PPOTrainer, steps: int) -> None:
    begun = dict(tiny_agent(value="adapter", reward=True).named_parameters())
    for name, parameter in learned(one).items():
        assert float((parameter - begun[name]).detach().abs().max()) > 1e-6, name
        for other in both:
            torch.testing.assert_close(other["learned"][name], parameter, atol=2e-6, rtol=1e-5, msg=name)
    for mine, theirs in zip(both[0]["logs"], logs(one), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert float(mine[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), key
    assert both[0]["steering"] == pytest.approx(one.steering.kl.coefficient)
    # Only what is trained travels, and it travels once a step; in addition to it, a few counts.
    trained = sum(4 * parameter.numel() for parameter in learned(one).values())
    assert trained < 0.5 * sum(4 * parameter.numel() for parameter in one.agent.parameters())
    for other in both:
        assert all(0 <= sent - steps * trained <= 200 * steps for sent in other["sent"]), (trained, other["sent"])


def of_two(folder: Path, run: str) -> dict[str, Any]:
    """What one of two processes learned, how many passes over episodes it saved, and bytes that updates sent."""
    kept: list[int] = []
    sent: list[int] = []
    estimate, update = PPOTrainer.estimate, PPOTrainer.update

    def watched(self: PPOTrainer, rollouts: Any, scores: Any) -> Any:
        found = estimate(self, rollouts, scores)
        kept.append(len(found[1].kept))
        return found

    def counted(self: PPOTrainer, *args: Any) -> Any:
        with counting_bytes() as bytes_of:
            found = update(self, *args)
        sent.append(sum(bytes_of.values()))
        return found

    with patch.multiple(PPOTrainer, estimate=watched, update=counted):
        done = train(folder, 2, run)
    assert done.accelerator.num_processes == 2
    found = {"learned": learned(done), "logs": logs(done), "steering": done.steering.kl.coefficient}
    return {**found, "fewer": sum(kept), "sent": sent}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = {name: of_two(out / name, name) for name in MICRO_BATCHES}
    found["again"] = learned(train(out / "again", 2, "one", out / "one" / "checkpoint-1"))
    torch.save(found, out / f"rank{os.environ['RANK']}.pt")
    exit_process(0)
