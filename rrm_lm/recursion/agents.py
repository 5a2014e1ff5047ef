"""Agents of a tree: every one a few adapters on the one backbone that all of them share.

An agent is a policy with the reward it was made for. A policy is either the best of several responses by the reward,
which needs no adapter of its own, or one that PPO trained.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig

from rrm_lm.evaluation.policies.samples import draw
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.agent import has_adapter
from rrm_lm.models.agent_files import put_reward
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.saving.policies import put_policy
from rrm_lm.recursion.assistance import Assistance
from rrm_lm.recursion.notes import with_notes
from rrm_lm.recursion.tasks import Task
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """What all agents of a tree are on.

    Attributes:
        backbone: The one frozen model.
        chat: How conversations are written.
        base_model: What the backbone is called.
        lora: What fresh adapters are like.
    """

    backbone: Backbone
    chat: ChatFormat
    base_model: str
    lora: LoraConfig


@dataclass
class Costs:
    """What something took.

    Attributes:
        checks: Single aspects of single responses that were measured or looked at.
        comparisons: Pairs of responses that the overseer was asked about.
        tokens: Tokens that were written.
        scored: Responses that a reward model read to choose between them.
        seconds: Time, by step.
    """

    checks: int = 0
    comparisons: int = 0
    tokens: int = 0
    scored: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Rewards(Protocol):
    """What gives rewards."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the reward of each response."""
        ...


_TOGETHER = 8  # responses to one prompt that share a row: attention grows with the square of a row


@dataclass(frozen=True)
class InPieces:
    """Rewards of many responses to a prompt, a few at a time.

    Attributes:
        rewards: What gives them.
    """

    rewards: Rewards

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        pieces = [
            (number, list(group[start : start + _TOGETHER]))
            for number, group in enumerate(responses)
            for start in range(0, len(group), _TOGETHER)
        ]
        found = self.rewards.score([prompts[number] for number, _ in pieces], [piece for _, piece in pieces])
        rewards: list[list[float]] = [[] for _ in responses]
        for (number, _), values in zip(pieces, found, strict=True):
            rewards[number] += values
        return rewards

    def fits(self, prompt: Prompt, response: str) -> bool:
        """Whether a response and its prompt are read whole."""
        return _fits(self.rewards, prompt, response)


@dataclass(frozen=True)
class RewardsWithNotes:
    """Rewards of a model that reads the notes behind a response, too.

    Attributes:
        rewards: The model's.
        assistance: Where the notes come from.
    """

    rewards: Rewards
    assistance: Assistance

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        pairs = [(prompt, text) for prompt, group in zip(prompts, responses, strict=True) for text in group]
        self.assistance.prepare(pairs)
        shown = [
            [with_notes(text, self.assistance.notes(prompt, text)) for text in group]
            for prompt, group in zip(prompts, responses, strict=True)
        ]
        return self.rewards.score(prompts, shown)

    def fits(self, prompt: Prompt, response: str) -> bool:
        """Whether a response and its prompt, without notes, are read whole."""
        return _fits(self.rewards, prompt, response)


def _fits(rewards: Rewards, prompt: Prompt, response: str) -> bool:
    """What rewards say of their room; those that say nothing have enough."""
    fits = getattr(rewards, "fits", None)
    return fits is None or fits(prompt, response)


@dataclass(frozen=True)
class Writer:
    """Draws responses from an adapter.

    Attributes:
        shared: The backbone it is on.
        adapter: Its name there.
        max_new_tokens: Longest response.
        costs: Where written tokens are counted.
    """

    shared: Shared
    adapter: str
    max_new_tokens: int
    costs: Costs = field(default_factory=Costs)

    def write(
        self, prompts: Sequence[Prompt], count: int = 1, *, seed: int = 0, temperature: float = 1.0
    ) -> list[list[str]]:
        """For each prompt, `count` responses."""
        sampling = Sampling(self.max_new_tokens, temperature)
        drawn = draw(self.shared.backbone, self.adapter, self.shared.chat, prompts, sampling, samples=count, seed=seed)
        self.costs.tokens += sum(one.tokens for group in drawn for one in group)
        return [[one.text for one in group] for group in drawn]

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt is read whole."""
        chat = self.shared.chat
        return chat.max_length is None or len(chat.uncut.prompt_ids(prompt)) <= chat.max_length


@dataclass(frozen=True)
class BestOfN:
    """A policy that needs no training: the response that the reward likes best.

    Attributes:
        task: What is responded to. Where it can name all responses worth considering, these are compared, else drawn.
        rewards: What they are compared by.
        writer: Draws them; None where there is always something to choose from.
        n: How many are drawn.
        seed: Of the drawing, and of the choice between equals.
        costs: Where responses that are read are counted.
    """

    task: Task
    rewards: Rewards
    writer: Writer | None
    n: int
    seed: int = 0
    costs: Costs = field(default_factory=Costs)

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        groups = [self.task.candidates(prompt) for prompt in prompts]
        bare = [number for number, group in enumerate(groups) if not group]
        if bare and self.writer is not None:
            for number, group in zip(
                bare, self.writer.write([prompts[number] for number in bare], self.n, seed=self.seed), strict=True
            ):
                groups[number] = group
        asked = [number for number, group in enumerate(groups) if group]
        chosen = [""] * len(prompts)
        found = self.rewards.score([prompts[i] for i in asked], [groups[i] for i in asked])
        self.costs.scored += sum(map(len, found))
        rng = random.Random(self.seed)
        for number, rewards in zip(asked, found, strict=True):
            order = rng.sample(range(len(rewards)), len(rewards))
            best = max(order, key=lambda place: rewards[place] if rewards[place] == rewards[place] else float("-inf"))
            chosen[number] = groups[number][best]
        return chosen

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt, with each response that there is to choose from, is read whole."""
        candidates = self.task.candidates(prompt)
        if not candidates:
            return self.writer is None or self.writer.fits(prompt)
        return all(_fits(self.rewards, prompt, text) for text in candidates)


@dataclass(frozen=True)
class Written:
    """A trained policy: its most likely response."""

    writer: Writer

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        return [group[0] for group in self.writer.write(prompts, temperature=0.0)]

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt is read whole."""
        return self.writer.fits(prompt)


@dataclass(frozen=True)
class Agent:
    """A solved task: who responds to it, and the reward that it was made for.

    Attributes:
        name: The node that it solves.
        task: The task.
        rewards: Its reward.
        policy: Its policy.
        costs: What using it has taken since it was put on the backbone.
    """

    name: str
    task: Task
    rewards: Rewards
    policy: BestOfN | Written
    costs: Costs

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        """One response to each prompt; "" where it cannot be read whole: a helper would judge what it never saw."""
        whole = [place for place, prompt in enumerate(prompts) if self.policy.fits(prompt)]
        if len(whole) < len(prompts):
            left = len(prompts) - len(whole)
            logger.warning(
                "%s has no room for %d of %d prompts, and answers nothing there", self.name, left, len(prompts)
            )
        responses = [""] * len(prompts)
        written = self.policy.respond([prompts[place] for place in whole]) if whole else []
        for place, text in zip(whole, written, strict=True):
            responses[place] = text
        return responses


def reward_adapter(name: str) -> str:
    """What the reward adapter of a node is called on the backbone."""
    return f"{name}_reward"


def policy_adapter(name: str) -> str:
    """What the policy adapter of a node is called on the backbone."""
    return f"{name}_policy"


def put_scorer(shared: Shared, folder: Path, name: str) -> Rewards:
    """The saved reward model of a node, on the shared backbone."""
    drop(shared, reward_adapter(name))
    model = put_reward(
        shared.backbone, folder, chat=shared.chat, base_model=shared.base_model, adapter=reward_adapter(name)
    )
    return InPieces(RewardScorer(model.eval(), shared.chat, name))


def put_writer(shared: Shared, folder: Path, adapter: str, max_new_tokens: int, costs: Costs) -> Writer:
    """A saved policy, on the shared backbone."""
    drop(shared, adapter)
    put_policy(shared.backbone, folder, adapter)
    return Writer(shared, adapter, max_new_tokens, costs)


def drop(shared: Shared, *adapters: str) -> None:
    """Take adapters off the backbone, where they are on it."""
    for adapter in adapters:
        if has_adapter(shared.backbone, adapter):
            shared.backbone.remove_adapter(adapter)


def summed(parts: Sequence[Any]) -> Costs:
    """All costs together."""
    total = Costs()
    for one in parts:
        total.checks += one.checks
        total.comparisons += one.comparisons
        total.tokens += one.tokens
        total.scored += one.scored
        for step, seconds in one.seconds.items():
            total.seconds[step] = total.seconds.get(step, 0.0) + seconds
    return total
