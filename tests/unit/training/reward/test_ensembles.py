"""How an ensemble's members are trained: each on its own bootstrap of the prompts, all in one pass."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel, RewardOutput, RewardSettings
from rrm_lm.text.batching import collate, share
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import LinePair, RewardExample
from rrm_lm.training.reward.losses import member_weights, pair_losses, rating_losses
from tests.tiny import lora, tiny_model
from tests.tiny_policy import CHAT as POLICY_CHAT
from tests.tiny_policy import PROMPTS, logs, tiny_agent, trainer, written
from tests.tiny_training import MIXED, config, furthest, log_sigmoid, mixed, plain_steps, state, trained
from tests.tiny_training import logs as training_logs

torch.set_num_threads(1)


def ensemble_of(heads: int = 3, sharing: bool | None = None, **how: Any) -> RewardModel:
    torch.manual_seed(1)
    settings = RewardSettings("tiny", ensemble_heads=heads, **how)
    return RewardModel.create(Backbone(tiny_model(), pad_id=0, sharing=sharing), lora(), settings)


# -- which prompts a member sees ------------------------------------------------------------------------------------


def test_weights_are_a_bootstrap_for_each_member() -> None:
    weights = torch.tensor([member_weights(7, 3, f"prompt {number}") for number in range(20_000)])
    for count, share_of in ((0, 0.3679), (1, 0.3679), (2, 0.1839), (3, 0.0613), (4, 0.0153)):
        for member in range(3):
            assert float((weights[:, member] == count).float().mean()) == pytest.approx(share_of, abs=0.012)
    assert weights.mean(0).tolist() == pytest.approx([1.0] * 3, abs=0.03)
    correlation = torch.corrcoef(weights.T)
    assert float((correlation - torch.eye(3)).abs().max()) < 0.03
    assert weights.max() > 5


def test_weights_are_a_function_of_seed_member_and_prompt() -> None:
    assert member_weights(0, 4, "a") == member_weights(0, 4, "a")
    assert member_weights(0, 6, "a")[:4] == member_weights(0, 4, "a")
    found = {tuple(member_weights(seed, 8, name)) for seed in range(3) for name in "ab"}
    assert len(found) == 6
    assert member_weights(0, 1, "a") == (1.0,)


# -- losses ---------------------------------------------------------------------------------------------------------


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members; the first is shown prompt a twice and b never, the second a once and b three times."""
    shown = {"a": (2.0, 1.0), "b": (0.0, 3.0)}
    monkeypatch.setattr("rrm_lm.training.reward.losses.member_weights", lambda seed, heads, about: shown[about])
    members = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.5, -1.0]])
    output = RewardOutput(members.mean(-1), torch.zeros(0), members, torch.zeros(0))
    data = [
        RewardExample((), (), prompt_id="a", pairs=(LinePair(0, 1, 2.0),)),  # no lines here: places count from 0
        RewardExample((), (), prompt_id="b", pairs=(LinePair(2, 3, None),), ratings=((3, 0.25),)),
    ]
    args = RewardConfig(use_cpu=True, center_rewards_coefficient=0.1, grades="margin")
    # Margins less the first pair's shift of 2: 1 - 0 - 2 = -1 and 0 - 2 - 2 = -4; 3 - 0.5 = 2.5 and 0 + 1 = 1.
    first = [-log_sigmoid(-1.0) + 0.1 * 1.0, -log_sigmoid(-4.0) + 0.1 * 4.0]
    second = [-log_sigmoid(2.5) + 0.1 * 12.25, -log_sigmoid(1.0) + 0.1 * 1.0]
    expected = [(2.0 * first[0] + first[1]) / 2, 3.0 * second[1] / 2]
    assert pair_losses(output, data, args).tolist() == pytest.approx(expected)
    rated = -0.25 * log_sigmoid(-1.0) - 0.75 * log_sigmoid(1.0)  # the first member is not shown b
    assert rating_losses(output, data).tolist() == pytest.approx([3.0 * rated / 2])


def test_one_step_by_the_definition(tmp_path: Path) -> None:
    """Plain gradient descent against each member's loss written out, line by line; the trunk has their mean."""
    model = ensemble_of(3)
    before = state(model)
    data = mixed(model)
    parts = []
    for example in data:
        members = torch.cat([model(collate([share([line.ids])], 0), [line]).members for line in example.lines])
        weights = members.new_tensor(member_weights(5, 3, example.prompt_id))
        for pair in example.pairs:
            left, right = members[pair.chosen], members[pair.rejected]
            losses = -torch.sigmoid(left - right).log() + 0.01 * (left + right) ** 2
            parts.append((weights * losses).mean() / 10)
        for line, value in example.ratings:
            good = torch.sigmoid(members[line])
            parts.append((weights * (-value * good.log() - (1 - value) * (1 - good).log())).mean() / 4)
    assert len(parts) == 14 and all(example.prompt_id for example in data)
    assert len({example.prompt_id for example in data}) > 10
    loss = torch.stack(parts).sum()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    expected = before | {name: before[name] - 0.02 * g for name, g in zip(names, gradients, strict=True)}
    args = plain_steps(
        tmp_path, max_steps=1, per_device_train_batch_size=MIXED, critique_weight=0.0, seed=5, ensemble_heads=3
    )
    made = trained(args, make=lambda _: data, model=model)
    assert furthest(state(model), before) > 1e-3
    assert furthest(state(model), expected) < 1e-6
    assert training_logs(made)[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert training_logs(made)[0]["disagreement"] > 0.1


@pytest.mark.parametrize("how", [{"ensemble": "mean_minus_std"}, {"ensemble": "min"}])
def test_neither_batches_nor_the_combination_change_what_is_learned(how: dict[str, Any], tmp_path: Path) -> None:
    """Members learn each by itself; how they are combined later plays no part in it."""
    usual = trained(plain_steps(tmp_path / "a", ensemble_heads=3), model=ensemble_of(3))
    other = ensemble_of(3, sharing=False, **how)
    trained(plain_steps(tmp_path / "b", ensemble_heads=3, micro_batch_tokens=1), model=other)
    assert furthest(state(usual.model), state(ensemble_of(3))) > 1e-2
    assert furthest(state(usual.model), state(other)) < 2e-6


def test_members_that_agree_in_everything_give_no_nan(tmp_path: Path) -> None:
    """The standard deviation has no slope where all members are the same."""
    model = ensemble_of(3, ensemble="mean_minus_std")
    with torch.no_grad():
        model.head.weight.zero_()
    trained(config(tmp_path, ensemble_heads=3, max_steps=1), model=model)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert len({tuple(row.tolist()) for row in model.head.weight.detach()}) == 3  # other prompts, other members


def test_members_without_centring_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rrm_lm"):
        RewardConfig(use_cpu=True, ensemble_heads=4)
        RewardConfig(use_cpu=True, center_rewards_coefficient=0.0)
        assert not caplog.text
        RewardConfig(use_cpu=True, ensemble_heads=4, center_rewards_coefficient=None)
    assert "may differ by constants" in caplog.text


# -- as the reward of a policy --------------------------------------------------------------------------------------


def test_ppo_is_rewarded_by_the_ensemble_and_logs_its_disagreement(tmp_path: Path) -> None:
    agent = tiny_agent()
    agent.add_reward(
        RewardModel.create(agent.backbone, lora(), RewardSettings("tiny", ensemble_heads=4, ensemble="min"))
    )
    made = trainer(tmp_path, agent, max_steps=1, num_ppo_epochs=1)
    responses = [[40, 41, 2], [50, 51, 52, 53], [2], [60, 61]]
    agent.roll_out = written(responses)  # type: ignore[method-assign]
    made.train()
    (entry,) = logs(made)
    prompts = [made.prompts[number].ids for number in made.order.update(0)]
    lines = [POLICY_CHAT.sampled_line(ids, answer) for ids, answer in zip(prompts, responses, strict=True)]
    with torch.no_grad():
        batch = collate([share([line.ids]) for line in lines], 0)
        members, combined = agent("members", batch, lines), agent("reward", batch, lines)
    assert members.shape == (4, 4) and torch.equal(combined, members.amin(-1))
    assert float(entry["reward/reward"]) == pytest.approx(float(members.amin(-1).mean()), rel=1e-3)
    assert float(entry["disagreement/reward"]) == pytest.approx(float(members.std(-1, correction=0).mean()), rel=1e-3)
    assert len(PROMPTS) == 5


def test_a_reward_of_one_member_has_no_disagreement(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_agent(reward=True), max_steps=1)
    made.train()
    assert "disagreement/reward" not in logs(made)[0] and "reward/reward" in logs(made)[0]
