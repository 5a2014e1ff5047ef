"""Which episodes make a step, and what each token weighs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.errors import ConfigError
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.estimates import estimate
from rrm_lm.training.ppo.update import Step, make_minibatches, plan_steps
from tests.tiny_policy import config

TOKENS = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
ORDER = [3, 1, 4, 0, 5, 2, 6, 7]


def alone(tensor: Tensor) -> Tensor:
    return tensor


def settings(folder: Path, **more: Any) -> PPOConfig:
    args = config(folder, **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **more})
    args.count_batches(1, 8)
    return args


def parted(args: PPOConfig, order: list[int]) -> list[list[int]]:
    size = args.local_mini_batch_size or 1
    return [order[start : start + size] for start in range(0, len(order), size)]


def planned(args: PPOConfig, processes: int = 1, total: Any = alone) -> list[Step]:
    return plan_steps(args, parted(args, ORDER), TOKENS, TOKENS + 1, total, processes)


def test_every_token_of_a_minibatch_weighs_the_same(tmp_path: Path) -> None:
    steps = planned(settings(tmp_path, num_mini_batches=2))
    assert [step.episodes for step in steps] == [ORDER[:4], ORDER[4:]]
    for step in steps:
        inside = torch.zeros(8, dtype=torch.bool)
        inside[step.episodes] = True
        assert float((step.policy_weights * TOKENS).sum()) == pytest.approx(1.0)
        assert float((step.value_weights * (TOKENS + 1)).sum()) == pytest.approx(1.0)
        assert len(set(step.policy_weights[inside].tolist())) == 1 and not step.policy_weights[~inside].any()


def test_how_a_minibatch_is_made_up_changes_no_weight(tmp_path: Path) -> None:
    (one,) = planned(settings(tmp_path))
    (other,) = planned(settings(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1))
    assert torch.equal(one.policy_weights, other.policy_weights)


def test_weights_of_two_processes_average_to_those_of_one(tmp_path: Path) -> None:
    """Each has half of the episodes; their gradients are averaged."""
    args = settings(tmp_path, per_device_train_batch_size=1)
    everything = TOKENS.sum()
    for mine in (TOKENS[:4], TOKENS[4:]):
        counts = torch.stack([everything, everything + 8]).float()
        (step,) = plan_steps(args, [[0, 1, 2, 3]], mine, mine + 1, lambda _, counts=counts: counts, 2)
        assert (step.policy_weights / 2).tolist() == pytest.approx([1 / 36] * 4)


def test_minibatches_of_all_processes_are_those_of_one(tmp_path: Path) -> None:
    """Each process has its own part of every one, however uneven."""
    one = make_minibatches(settings(tmp_path, num_mini_batches=2), 3)
    halves = settings(tmp_path, num_mini_batches=2, per_device_train_batch_size=1)
    parts = [make_minibatches(halves, 3, process, 2) for process in (0, 1)]
    assert sorted(one[0] + one[1]) == list(range(8)) and one != make_minibatches(settings(tmp_path), 4)
    for whole, first, second in zip(one, *parts, strict=True):
        assert sorted(whole) == sorted(first + [4 + number for number in second])


def test_trls_weights_are_per_micro_batch(tmp_path: Path) -> None:
    (step,) = planned(settings(tmp_path, trl_compatible=True))
    assert step.micro_batches == [[3, 1], [4, 0], [5, 2], [6, 7]]
    assert step.policy_weights[3] == step.policy_weights[1] == pytest.approx(1 / (4 * (4 + 2)))
    assert step.policy_weights[6] == pytest.approx(1 / (4 * (7 + 8)))
    assert step.value_weights[6] == pytest.approx(1 / (4 * (8 + 9)))


def test_trls_minibatches_have_no_effect_unless_nothing_is_accumulated(tmp_path: Path) -> None:
    args = settings(tmp_path, trl_compatible=True, num_mini_batches=2)
    assert len(planned(args)) == args.steps_per_pass == 1
    single = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    args = settings(tmp_path, trl_compatible=True, num_mini_batches=4, **single)
    assert [step.episodes for step in planned(args)] == [ORDER[:2], ORDER[2:4], ORDER[4:6], ORDER[6:]]
    assert args.steps_per_pass == 4
    assert settings(tmp_path, num_mini_batches=2).steps_per_pass == 2


def test_trls_steps_that_reach_into_the_next_pass_are_refused(tmp_path: Path) -> None:
    args = settings(
        tmp_path, trl_compatible=True, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=2
    )
    with pytest.raises(ConfigError, match="4 micro-batches a pass and 3 a step"):
        plan_steps(args, parted(args, list(range(12))), torch.ones(12), torch.ones(12), alone, 1)


def estimated(args: PPOConfig) -> Any:
    """Two episodes of 1 and 3 tokens; a KL cost of 0.1 a nat, no discount."""
    log_probs = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    reference = torch.tensor([[-3.0, 0.0, 0.0], [-1.0, -1.0, -3.0]])
    values = torch.tensor([[0.5, 0.0, 0.0], [0.1, 0.2, 0.3]])
    ends, scores, lengths = torch.tensor([0.7, 0.9]), torch.tensor([2.0, 4.0]), torch.tensor([1, 3])
    return estimate(args, 0.1, log_probs, reference, values, ends, scores, lengths, alone)


def test_the_score_is_given_for_the_last_token(tmp_path: Path) -> None:
    found = estimated(settings(tmp_path, gamma=1.0, lam=1.0))
    torch.testing.assert_close(found.kl, torch.tensor([[2.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
    torch.testing.assert_close(found.returns, torch.tensor([[1.8, 0.0, 0.0], [4.1, 4.1, 4.0]]))
    assert torch.equal(found.is_valued, found.is_response)


def test_in_trls_way_it_is_given_behind_it_where_there_is_room(tmp_path: Path) -> None:
    found = estimated(settings(tmp_path, gamma=1.0, lam=0.0, trl_compatible=True))
    assert found.is_valued.tolist() == [[True, True, False], [True, True, True]]
    torch.testing.assert_close(found.values, torch.tensor([[0.5, 0.7, 0.0], [0.1, 0.2, 0.3]]))
    # With lambda 0 a return is the reward and the next value: the last token learns of the score by its value alone.
    torch.testing.assert_close(found.returns, torch.tensor([[-0.2 + 0.7, 2.0, 0.0], [0.2, 0.1 + 0.3, 4.0]]))


def test_advantages_are_whitened_over_responses(tmp_path: Path) -> None:
    found = estimated(settings(tmp_path))
    inside = found.advantages[found.is_response]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(inside.std()) == pytest.approx(1.0, abs=1e-5)
    assert not found.advantages[~found.is_response].any()
