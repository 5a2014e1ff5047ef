"""Everything that is computed with is where the model is: no tensor is left on the CPU, and none comes back unasked.

On a device that only says it is another one (tests/other_device.py), what comes out must be what the CPU gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import LlamaForSequenceClassification

from rrm_lm.evaluation.policies.samples import Drawn, log_probs
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, JudgeScorer, RewardScorer
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.decoding.generation import sample
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import RewardModel
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training import arguments
from rrm_lm.training.ppo.reports import Stopwatch
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import AdapterReward, ClassifierOnTokens
from rrm_lm.training.sft.trainer import response_nll
from tests import tiny_policy
from tests.other_device import OnDevice, other_device
from tests.tiny import prompt_of, some_comparisons, tiny_chat, tiny_config, tiny_reward_model
from tests.tiny_decoding import PROMPTS, make
from tests.tiny_training import config, examples, logs, mixed

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with other_device(monkeypatch) as made:
        yield made


def numbers(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, OnDevice)
    return tensor.detach().cpu()


def test_the_device_tells_tensors_that_were_left_behind(device: torch.device) -> None:
    there = torch.arange(6.0, device=device).view(2, 3)
    assert there.device == device and (there @ there.T).device == device
    assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]  # a number may come from the CPU
    assert there[torch.tensor([1])].tolist() == [[3, 4, 5]]  # and so may places
    for wrong in (
        lambda: there + torch.ones(3),
        lambda: torch.cat([there, torch.ones(1, 3)]),
        lambda: torch.ones(2, 3)[there[:, 0].long()],
        lambda: there.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            wrong()


def scored(model: RewardModel, where: torch.device | str) -> tuple[Any, list[Tensor | None]]:
    made = mixed(model)
    batch = collate([row for one in made for row in one.rows], 0).to(where)
    output = model(batch, [line for one in made for line in one.lines])
    (output.rewards.sum() + output.critique_nll.sum()).backward()
    return output, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_reward_model(family: str, device: torch.device) -> None:
    expected, gradients = scored(tiny_reward_model(family), "cpu")
    output, found = scored(tiny_reward_model(family).to(device), device)
    torch.testing.assert_close(numbers(output.rewards), expected.rewards.detach(), **CLOSE)
    torch.testing.assert_close(numbers(output.critique_nll), expected.critique_nll.detach(), **CLOSE)
    for mine, theirs in zip(found, gradients, strict=True):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(numbers(mine), theirs, rtol=1e-3, atol=1e-4)


def passes(agent: AgentModel, where: torch.device | str) -> list[Tensor]:
    lines = [ChatFormat.sampled_line(tuple(prompt), [7, 8, 9]) for prompt in PROMPTS]
    batch = collate(agent.rows(lines), 0).to(where)
    sampling = Sampling(4, temperature=0.7, top_p=0.9)
    policy: Any = agent("policy", batch, lines, sampling)
    (policy.log_probs.sum() + policy.values.sum()).backward()
    found = [policy.log_probs, policy.values, policy.entropy, policy.end_values]
    found += [agent("reference", batch, lines, sampling), agent("reward", batch, lines), agent("members", batch, lines)]
    return [*found, *(parameter.grad for parameter in agent.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_every_role_of_an_agent(value: str, device: torch.device) -> None:
    expected = passes(tiny_policy.tiny_agent(value=value, reward=True), "cpu")
    found = passes(tiny_policy.tiny_agent(value=value, reward=True).to(device), device)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(numbers(mine), theirs.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])  # lean, by the model's own code, with sample()
def test_rollouts(family: str, device: torch.device) -> None:
    sampling, told = Sampling(8, temperature=1.5, top_p=0.95, top_k=40), {"end_ids": [9], "num_return": 2}
    expected = roll_out(make(family), "policy", PROMPTS, sampling, **told)
    backbone = make(family)
    assert roll_out(backbone.to(device), "policy", PROMPTS, sampling, **told) == expected


def test_generated(device: torch.device) -> None:
    told: dict[str, Any] = {"pad_id": 0, "eos_ids": [9], "max_new_tokens": 6, "temperature": 0.0}
    expected = sample(make().model, PROMPTS, **told)
    assert sample(make().to(device).model, PROMPTS, **told) == expected


@pytest.fixture
def trains_there(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Iterator[torch.device]:
    """Trainers made here take the device for this machine's."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(arguments, "default_device", lambda: device)
    yield device
    AcceleratorState._reset_state(reset_partial_state=True)


def test_reward_training(tmp_path: Path, trains_there: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**more: Any) -> list[dict[str, Any]]:
        model = tiny_reward_model()
        args = config(tmp_path, **more)
        trainer = RewardTrainer(model, args, mixed(model), examples(model, some_comparisons(4)))
        trainer.train()
        assert {parameter.device for parameter in trainer.model.parameters()} == {args.device}
        logged = [{name: one for name, one in entry.items() if name != "tokens_per_second"} for entry in logs(trainer)]
        return [*logged, trainer.evaluate()]

    there = train(use_cpu=False, optim="adamw_torch")
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    for mine, theirs in zip(there, train(optim="adamw_torch"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_ppo(tmp_path: Path, trains_there: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(**more: Any) -> list[dict[str, Any]]:
        agent = tiny_policy.tiny_agent(reward=True)
        trainer = tiny_policy.trainer(tmp_path, agent, normalize_rewards=True, missing_eos_penalty=1.0, **more)
        trainer.train()
        assert {parameter.device for parameter in trainer.agent.parameters()} == {trainer.args.device}
        return tiny_policy.logs(trainer)

    there = train(use_cpu=False, optim="adamw_torch")
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    for mine, theirs in zip(there, train(optim="adamw_torch"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_what_is_only_asked(device: torch.device) -> None:
    lines = [ChatFormat.sampled_line(tuple(prompt), [7, 8, 9]) for prompt in PROMPTS]
    asked, said = [prompt_of("what is the moon made of?")], [["the answer is yes", "no"]]
    drawn = [[Drawn(line, "", False)] for line in lines]
    one_label = tiny_config("llama")
    one_label.num_labels = 1

    def ask(where: torch.device | str) -> list[Any]:
        reward, backbone = tiny_reward_model().to(where), make().to(where).eval()
        torch.manual_seed(0)
        classifier: Any = LlamaForSequenceClassification(one_label)
        with torch.no_grad():
            nll = response_nll(backbone, "policy", lines)
        return [
            RewardScorer(reward, tiny_chat()).score(asked, said)[0],
            JudgeScorer(backbone, tiny_chat(), "judge").score(asked, said)[0],
            ClassifierScorer(classifier.to(where), tiny_chat(), "classifier").score(asked, said)[0],
            AdapterReward(reward).score_lines(lines),
            ClassifierOnTokens(classifier.to(where)).score_lines(lines),
            [value for (value,) in log_probs(backbone, "policy", drawn)],
            [value for one in nll for value in one.tolist()],
        ]

    for mine, theirs in zip(ask(device), ask("cpu"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_times_are_taken_when_the_device_is_done(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(torch.get_device_module(device), "synchronize", lambda: waited.append(0.0))
    watch = Stopwatch(device)
    with watch("update"):
        assert not waited
    assert len(waited) == 1 and watch.seconds["update"] > 0
