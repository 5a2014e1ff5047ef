"""Inputs for TRL's RLOOTrainer: rewards as functions, rows in the order of updates, and prompts as messages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.models.ensemble import disagreement
from rrm_lm.training.ppo.prompts import PromptOrder
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.reward_sources import RewardSource, RewardSum, TokenRewardSource


class RewardFunction:
    """A reward source in TRL's calling convention."""

    def __init__(self, source: RewardSource | TokenRewardSource, rollouts: Callable[..., Rollouts]) -> None:
        self.__name__ = source.name
        self._source, self._rollouts = RewardSum([source], is_part=True), rollouts

    def __call__(
        self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], log_metric: Any, **_: Any
    ) -> list[float]:
        made = self._rollouts(prompts, completion_ids)
        rewards = self._source([item.prompt for item in made.items], made.texts, made.lines)[self.__name__]
        apart = disagreement(rewards)
        if apart is not None:
            log_metric(f"disagreement/{self.__name__}", apart)
        return rewards


def missing_end_penalty(penalty: float, rollouts: Callable[..., Rollouts]) -> Callable[..., list[float]]:
    """The penalty for responses that reach the length limit, in TRL's calling convention."""

    def missing_eos_penalty(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [-penalty * (not done) for done in rollouts(prompts, completion_ids).finished]

    return missing_eos_penalty


class UpdateSampler(Sampler[int]):
    """The rows of all updates in sequence. Each update's rows come `repeats` times: TRL reads them for every
    micro-batch and uses the first reading.
    """

    def __init__(self, order: PromptOrder, updates: int, repeats: int, samples: int) -> None:
        self._order, self._updates, self._repeats, self._samples = order, updates, repeats, samples

    def __iter__(self) -> Iterator[int]:
        for update in range(self._updates):
            rows = [row for row in self._order.update(update) for _ in range(self._samples)]
            for _ in range(self._repeats):
                yield from rows

    def __len__(self) -> int:
        return self._updates * self._repeats * self._order.size * self._samples


def to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [message.to_dict() for message in prompt]


def to_prompt(messages: Sequence[Any]) -> Prompt:
    return tuple(map(Message.from_dict, messages))


def tokenizer_with_eos(tokenizer: Any, eos_id: int) -> Any:
    """A copy of the tokenizer with this eos token, which marks the end of a response for TRL."""
    if tokenizer.eos_token_id == eos_id:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(eos_id)
    return other
