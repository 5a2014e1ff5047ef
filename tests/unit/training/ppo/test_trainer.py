"""The trainer on our agents: what is trained, how episodes are computed, and when it stops."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rrm_lm.errors import ConfigError, DataError, TrainingError
from rrm_lm.models.agent import POLICY, VALUE, AgentModel
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.precision import Precision
from tests.tiny import lora, prompt_of, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting, logs, state, tiny_agent, trainer, written

torch.set_num_threads(1)

UNEVEN = [[40, 41, 2], [50, 51, 52, 53, 54, 55], [2], [60, 61], [40, 41, 42, 2], [33]]


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_two_updates_change_all_that_is_trained_and_nothing_else(
    value: str, tmp_path: Path, precision: Precision
) -> None:
    agent = tiny_agent(value=value, reward=True, dropout=0.1)
    before, trainable = state(agent), {name for name, p in agent.named_parameters() if p.requires_grad}
    made = trainer(tmp_path, agent)
    made.train()
    own = set(adapter_parameters(agent, POLICY)) | set(adapter_parameters(agent, VALUE))
    assert trainable == own | {"value_head.weight", "value_head.bias"}
    for name, parameter in agent.named_parameters():
        assert parameter.requires_grad == (name in trainable), name
        assert torch.equal(parameter, before[name]) == (name not in trainable), name
    assert made.state.global_step == 2 and made.state.episode == 8


def test_a_separate_value_model_is_trained_whole(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    from rrm_lm.training.ppo.trl import agent_from_trl
    from tests.tiny import tiny_config

    settings = tiny_config("llama")
    settings.num_labels = 1
    torch.manual_seed(2)
    value_model = LlamaForSequenceClassification(settings)
    agent = agent_from_trl(config(tmp_path), tiny_model(), None, value_model, lora())
    before = state(agent)
    trainer(tmp_path, agent).train()
    unchanged = {name for name, p in agent.named_parameters() if torch.equal(p, before[name])}
    assert unchanged == {name for name in before if "value_backbone" not in name and "lora" not in name} - {
        "value_head.weight"
    }


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_sharing_a_prompt_changes_nothing_in_training(family: str, tmp_path: Path) -> None:
    """Plain gradient descent in float64, two samples a prompt, micro-batches of any size."""
    found = []
    for number, (share, tokens) in enumerate([(True, 10_000), (False, 10_000), (True, 60)]):
        agent = tiny_agent(family, value="adapter").double()
        settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
        made = trainer(
            tmp_path / str(number),
            agent,
            samples_per_prompt=2,
            share_prefixes=share,
            micro_batch_tokens=tokens,
            **settings,
        )
        agent.roll_out = written(UNEVEN)  # type: ignore[method-assign]
        made.train()
        found.append((state(agent), logs(made)))
    for parameters, logged in found[1:]:
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, found[0][0][name], atol=3e-6, rtol=1e-6, msg=name)
        for mine, other in zip(logged, found[0][1], strict=True):
            assert {key: float(mine[key]) for key in other} == pytest.approx(
                {key: float(other[key]) for key in other}, rel=2e-4, abs=1e-5, nan_ok=True
            )


def test_the_first_step_learns_from_the_pass_that_estimated(tmp_path: Path, precision: Precision) -> None:
    """One epoch: a single pass of the policy, and a ratio of exactly 1."""
    made = trainer(tmp_path, num_ppo_epochs=1)
    calls: list[str] = []
    forward = made.agent.forward
    made.agent.forward = lambda role, *more: calls.append(role) or forward(role, *more)  # type: ignore[method-assign]
    made.train()
    assert calls == ["reference", "policy"] * 2
    for entry in logs(made):
        assert float(entry["val/ratio"]) == 1.0 and float(entry["policy/approxkl_avg"]) == 0.0


def test_a_policy_learns_what_is_rewarded(tmp_path: Path) -> None:
    agent = tiny_agent(random=False)
    made = trainer(
        tmp_path,
        agent,
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=2e-2,
        response_length=4,
        kl_coef=0.0,
        rewards=[PythonReward(lambda prompts, texts: [float("a" in text) - 0.05 * len(text) for text in texts], "a")],
    )
    made.train()
    scores = [float(entry["reward/a"]) for entry in logs(made)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3


# -- conventions ----------------------------------------------------------------------------------------------------


def test_the_reward_of_an_unfinished_response_is_lowered(tmp_path: Path) -> None:
    agent = tiny_agent()
    made = trainer(tmp_path, agent, missing_eos_penalty=2.0, per_device_train_batch_size=6)
    agent.roll_out = written(UNEVEN)  # type: ignore[method-assign]
    rollouts = made.roll_out([made.prompts[0]] * 6)
    scores = made.score(rollouts)
    plain = counting([], rollouts.texts)
    expected = [reward - 2.0 * (ids[-1] != 2) for reward, ids in zip(plain, UNEVEN, strict=True)]
    assert scores.raw.tolist() == pytest.approx(expected)
    assert rollouts.finished == [ids[-1] == 2 for ids in UNEVEN]


def test_rewards_are_normalised_and_clipped_but_logged_as_they_are(tmp_path: Path) -> None:
    agent = tiny_agent()
    made = trainer(tmp_path, agent, normalize_rewards=True, reward_clip=0.5, per_device_train_batch_size=6)
    agent.roll_out = written(UNEVEN)  # type: ignore[method-assign]
    scores = made.score(made.roll_out([made.prompts[0]] * 6))
    expected = ((scores.raw - scores.raw.mean()) / scores.raw.std()).clamp(-0.5, 0.5)
    torch.testing.assert_close(scores.used, expected, atol=1e-5, rtol=1e-5)
    made.train()
    assert made.steering.scale.count == 6 * 3
    assert float(logs(made)[0]["objective/scores"]) == pytest.approx(float(scores.raw.mean()), rel=1e-3)


def test_the_coefficient_is_steered(tmp_path: Path) -> None:
    made = trainer(tmp_path, kl_control="adaptive", kl_target=1e-3, kl_coef=0.1, kl_gain=0.5)
    made.train()
    used = [float(entry["objective/kl_coef"]) for entry in logs(made)]
    assert used == pytest.approx([0.1, 0.11], rel=1e-3)  # the random adapter is far from the reference already
    assert made.steering.kl.coefficient == pytest.approx(0.121)


def test_each_reward_is_logged_by_itself(tmp_path: Path) -> None:
    agent = tiny_agent(reward=True)
    made = trainer(tmp_path, agent, rewards=[PythonReward(counting)], reward_weights=[2.0, 0.5])
    made.train()
    for entry in logs(made):
        both = 2.0 * float(entry["reward/reward"]) + 0.5 * float(entry["reward/counting"])
        assert float(entry["objective/scores"]) == pytest.approx(both, rel=1e-2, abs=2e-3)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    clipped, free = trainer(tmp_path / "a", max_grad_norm=1e-3), trainer(tmp_path / "b", max_grad_norm=0.0)
    norms: list[list[float]] = [[], []]
    for found, made in zip(norms, (clipped, free), strict=True):

        def note(optimizer: Any, *_: Any, into: list[float] = found) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            into.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))

        made.optimizer.optimizer.register_step_pre_hook(note)  # type: ignore[union-attr]
        made.train()
    assert max(norms[0]) == pytest.approx(1e-3, rel=1e-3) and min(norms[1]) > 1e-2


# -- stopping -------------------------------------------------------------------------------------------------------


def test_a_kl_explosion_stops_and_keeps_the_policy_from_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = tiny_agent(random=False)
    made = trainer(tmp_path, agent, max_steps=50, learning_rate=0.3, max_kl=2.0, max_grad_norm=0.0)
    kept: list[dict[str, Any]] = []
    update = made.update
    made.update = lambda *more: kept.append(state(agent)) or update(*more)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        made.train()
    assert made.state.global_step < 50
    assert made.stop_reason is not None and "KL divergence" in made.stop_reason and "max_kl 2" in made.stop_reason
    assert made.stop_reason in caplog.text
    for name, parameter in agent.named_parameters():
        assert torch.equal(parameter, kept[-1][name]), name
    assert float(logs(made)[-1]["objective/kl"]) > 2.0


def test_a_value_loss_that_runs_away_stops(tmp_path: Path) -> None:
    agent = tiny_agent()
    before = state(agent)
    made = trainer(
        tmp_path, agent, max_steps=50, max_value_loss=10.0,
        rewards=[PythonReward(lambda prompts, texts: [1000.0 * (i + 1) for i in range(len(texts))], "huge")],
    )  # fmt: skip
    made.train()
    assert made.state.global_step == 1
    assert made.stop_reason is not None and "value loss" in made.stop_reason
    assert all(torch.equal(parameter, before[name]) for name, parameter in agent.named_parameters())


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path: Path) -> None:
    agent = tiny_agent()
    made = trainer(tmp_path, agent, max_steps=3)
    estimate, before = made.estimate, state(agent)

    def broken(*more: Any) -> Any:
        estimates, first = estimate(*more)
        estimates.advantages[0, 0] = math.nan
        return estimates, first

    made.estimate = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="loss is nan"):
        made.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in agent.named_parameters())


def test_a_callback_may_stop(tmp_path: Path) -> None:
    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 2

    made = trainer(tmp_path, max_steps=9, callbacks=[Enough()])
    made.train()
    assert made.state.global_step == 2 and made.stop_reason is None


def test_a_policy_that_writes_only_the_end(tmp_path: Path) -> None:
    agent = tiny_agent(reward=True)
    made = trainer(tmp_path, agent, max_steps=2, rewards=[PythonReward(counting)], samples_per_prompt=2)
    agent.roll_out = written([[CHAT.end_id]])  # type: ignore[method-assign]
    made.train()
    for entry in logs(made):
        assert float(entry["val/response_length"]) == float(entry["val/finished"]) == 1.0
        assert all(math.isfinite(float(value)) for value in entry.values())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in agent.parameters())


def test_a_stop_token_that_never_comes_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agent = tiny_agent()
    made = trainer(tmp_path, agent, max_steps=3, stop_token_id=11, missing_eos_penalty=1.0)
    agent.roll_out = written([[40, 41, 42]])  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        made.train()
    assert caplog.text.count("no response has ended within") == 1


def test_a_reward_that_fails_stops_with_the_text(tmp_path: Path) -> None:
    bad = PythonReward(lambda prompts, texts: [math.nan] * len(texts), "bad")
    with pytest.raises(TrainingError, match=r"bad gave nan.*made of"):
        trainer(tmp_path, rewards=[bad]).train()


# -- arguments ------------------------------------------------------------------------------------------------------


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        PPOTrainer(config(tmp_path), CHAT.tokenizer, tiny_agent(), rewards=[PythonReward(counting)], chat=CHAT)
    with pytest.raises(ConfigError, match="no reward"):
        trainer(tmp_path, rewards=[])
    with pytest.raises(ConfigError, match="its own peft_config"):
        PPOTrainer(
            config(tmp_path), CHAT.tokenizer, tiny_agent(), train_dataset=PROMPTS, peft_config=lora(),
            rewards=[PythonReward(counting)], chat=CHAT,
        )  # fmt: skip
    with pytest.raises(DataError, match="row 1"):
        trainer(tmp_path, train_dataset=[()])
    with pytest.raises(ConfigError, match="512 positions"):
        trainer(tmp_path, train_dataset=[prompt_of("sea " * 600)])


def test_activations_can_be_recomputed(tmp_path: Path, precision: Precision) -> None:
    found = []
    for number, recompute in enumerate((False, True)):
        agent = tiny_agent(value="adapter")
        made = trainer(tmp_path / str(number), agent, activation_checkpointing=recompute, optim="sgd")
        agent.roll_out = written(UNEVEN)  # type: ignore[method-assign]
        made.train()
        found.append(state(agent))
    precision.same_change(found[0], found[1], state(tiny_agent(value="adapter")), 1e-6)


def test_a_fresh_agent_is_as_far_from_the_reference_as_nothing(tmp_path: Path, precision: Precision) -> None:
    agent = AgentModel.create(Backbone(tiny_model(), 0), lora(random=False))
    made = trainer(tmp_path, agent, max_steps=1)
    made.train()
    assert abs(float(logs(made)[0]["objective/kl"])) < 1e-4


def test_mixed_precision(tmp_path: Path) -> None:
    agent = tiny_agent()
    before = state(agent)
    made = trainer(tmp_path, agent, bf16=True)
    made.train()
    assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in agent.parameters())
    assert not any(torch.equal(p, before[name]) for name, p in agent.named_parameters() if p.requires_grad)


def test_dropout_is_off_also_while_activations_are_recomputed(tmp_path: Path) -> None:
    """A layer that applies it as a number, and the adapter's own."""
    agent = tiny_agent(dropout=0.5)
    for layer in agent.backbone.causal_lm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    made = trainer(tmp_path, agent, activation_checkpointing=True, num_ppo_epochs=2, learning_rate=0.0)
    made.train()
    assert all(float(entry["val/ratio"]) == pytest.approx(1.0, abs=1e-6) for entry in logs(made))


def test_rollouts_gather_layer_by_layer_if_the_whole_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert trainer(tmp_path, max_steps=1).agent.gathers
    monkeypatch.setattr("rrm_lm.training.ppo.agent_trainer.full_copy_fits", lambda agent: False)
    made = trainer(tmp_path, max_steps=1)
    assert not made.agent.gathers
    assert "rollouts gather its layers one by one" in caplog.text
