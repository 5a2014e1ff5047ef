"""Between the steps of an update, and between the tokens of a rollout, the host never waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.models.decoding import rollouts, sampling
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.training.ppo.update import PolicyUpdate
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.host_sync import host_waits
from tests.precision import Precision
from tests.tiny import rating, some_comparisons, tiny_chat, tiny_reward_model
from tests.tiny_policy import CHAT, tiny_agent, trainer


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1, 2]),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x[0]),
    ],
)
def test_what_waits_is_found(read: Any) -> None:
    x = torch.arange(3.0)
    with host_waits() as found:
        read(x)
    assert found and "outside" in found[0]


def test_what_does_not_wait_is_not_found() -> None:
    x, places, mask = torch.arange(3.0), torch.tensor([2, 0]), torch.tensor([True, False, True])
    with host_waits() as found:
        y = x[places] * 2 + x.new_zeros(2) + torch.arange(2, device=x.device)
        torch.zeros(3).masked_scatter(mask, y)
        torch.where(mask, x, 0.0).softmax(0)[1:]
    assert found == []


def run_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """What is found between the plan and the end of each epoch of one update."""
    agent, found = tiny_agent(reward=True), []
    sizes = {"num_mini_batches": 2, "num_ppo_epochs": 2, "per_device_train_batch_size": 4, "micro_batch_tokens": 40}
    made = trainer(tmp_path, agent, max_steps=1, **{**sizes, **settings})
    accumulate, step = PolicyUpdate._accumulate, PolicyUpdate._step
    passes: list[int] = []

    def watched(method: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            with host_waits() as here:
                result = method(self, *args)
            found.extend(here)
            passes.append(len(args[1]) if args else 0)
            return result

        return call

    monkeypatch.setattr(PolicyUpdate, "_accumulate", watched(accumulate))
    monkeypatch.setattr(PolicyUpdate, "_step", watched(step))
    made.train()
    assert len(passes) >= 8 and max(passes) > 0
    return found


@pytest.mark.parametrize("share", [True, False])
def test_an_update_does_not_wait(share: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_update(tmp_path, monkeypatch, share_prefixes=share, samples_per_prompt=2)
    # transformers reads its padding mask once in a pass of rows that are single lines
    theirs = [one for one in found if "backbone.py" in one and "self.decoder(" in one]
    assert len(found) == len(theirs) < 20


def test_a_wait_in_an_update_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = PolicyUpdate._loss
    monkeypatch.setattr(PolicyUpdate, "_loss", lambda *args: loss(*args) * (1.0 + 0.0 * loss(*args).item()))
    assert any("_local_scalar_dense" in one for one in run_update(tmp_path, monkeypatch))


@pytest.mark.parametrize("planted", [False, True])
def test_reward_training_reads_once_in_a_step(planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four micro-batches of pairs, critiques and ratings."""
    model = tiny_reward_model()
    builder = ExampleBuilder(tiny_chat(), model.backbone)
    examples = builder.comparisons(some_comparisons(6, critiques=True))
    examples += builder.responses([], [rating(f"moon {n}?", "no " * n, 0.3, row=n) for n in range(1, 3)])
    args = RewardConfig(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=8, micro_batch_tokens=100, max_steps=1, sft_weight=0.2,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    made, found = RewardTrainer(model, args, examples, processing_class=tiny_chat().tokenizer), []
    loss, passes = RewardTrainer._loss, []

    def watched(self: Any, *more: Any) -> Any:
        with host_waits() as here:
            result = loss(self, *more)
            result = result * (1.0 + 0.0 * result.item()) if planted else result
        passes.append(len(more[1]))
        found.extend(here)
        return result

    monkeypatch.setattr(RewardTrainer, "_loss", watched)
    made.train()
    ours = [one for one in found if "self.decoder(" not in one]  # see test_an_update_does_not_wait
    assert len(passes) > 2 and bool(ours) == planted, ours


@pytest.mark.parametrize("how", [{}, {"top_p": 0.7}, {"top_k": 3}, {"temperature": 0.0}], ids=str)
def test_tokens_are_drawn_without_waiting(how: Any, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tiny_agent()
    prompts = [[5, 6, 7, 8], [5, 6, 9], [10, 11, 12, 13, 14]]
    draws = Sampling(40, **how)
    count = 3 if draws.temperature else 1
    settings: Any = {"end_ids": [CHAT.end_id, *range(20, 60)], "num_return": count, "seed": 4}
    expected = roll_out(agent.backbone, agent.policy_adapter, prompts, draws, **settings)
    lengths = {len(ids) for samples in expected for ids in samples}
    assert len(lengths) > 1 and max(lengths) > 3
    looks: list[str] = []
    original = Sampling.draw

    def draw(self: Any, logits: Any, uniform: Any) -> Any:
        with host_waits() as found:
            result = original(self, logits, uniform)
        looks.extend(found)
        return result

    def step(*args: Any) -> Any:
        with host_waits() as found:
            result = move(*args)
        looks.extend(found)
        return result

    move = rollouts._next
    monkeypatch.setattr(rollouts, "stalls", lambda device: True)
    monkeypatch.setattr(sampling, "stalls", lambda device: True)
    monkeypatch.setattr(rollouts, "_next", step)
    monkeypatch.setattr(Sampling, "draw", draw)
    assert roll_out(agent.backbone, agent.policy_adapter, prompts, draws, **settings) == expected
    assert looks == []


def test_the_host_looks_once_in_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, reads = tiny_agent(), []
    monkeypatch.setattr(rollouts, "stalls", lambda device: True)
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (reads.append(tuple(self.shape)), tolist(self))[1])
    roll_out(agent.backbone, agent.policy_adapter, [[5, 6, 7]], Sampling(40), end_ids=[], seed=1)
    assert [shape for shape in reads if len(shape) == 2] == [(1, 16), (1, 16), (1, 8)]


def test_a_process_may_have_no_episode_of_a_mini_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mini-batches are drawn over all processes."""
    made = trainer(tmp_path, tiny_agent(), max_steps=1, num_mini_batches=2)
    monkeypatch.setattr("rrm_lm.training.ppo.update.make_minibatches", lambda *_: [[2, 0, 1, 3], []])
    made.train()
    (entry,) = [one for one in made.state.log_history if "val/ratio" in one]
    assert float(entry["val/ratio"]) > 0
