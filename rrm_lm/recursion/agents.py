"""Agents of a tree: each is one or two adapters on the shared backbone.

An agent is a policy with its reward model. The policy either selects the response with the highest reward (best-of-n,
no training) or is trained with PPO.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig

from rrm_lm.evaluation.policies.samples import draw
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.saving.policies import put_policy
from rrm_lm.recursion.assistance import Assistance
from rrm_lm.recursion.notes import with_notes
from rrm_lm.recursion.tasks import Task
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

_CHUNK = 8  # responses to one prompt in one row of a batch; attention cost is quadratic in the row's length


@dataclass(frozen=True)
class Shared:
    backbone: Backbone  # the frozen model
    chat: ChatFormat
    base_model: str  # the backbone's name
    lora: LoraConfig  # the configuration of new adapters


@dataclass
class Costs:
    """The cost of solving a node or using an agent."""

    checks: int = 0  # measurements or judgments of one aspect of one response
    comparisons: int = 0  # pairs of responses that the overseer compared
    tokens: int = 0  # tokens generated
    scored: int = 0  # responses scored for best-of-n
    seconds: dict[str, float] = field(default_factory=dict)  # time by step


@dataclass(frozen=True)
class _Wrapped:
    scorer: ResponseScorer

    @property
    def name(self) -> str:
        return self.scorer.name

    def fits(self, prompt: Prompt, response: str) -> bool:
        """Whether a prompt and a response without notes fit the scorer's context, if it has a limit."""
        fits = getattr(self.scorer, "fits", None)
        return fits is None or fits(prompt, response)


class ChunkedScorer(_Wrapped):
    """Scores many responses to a prompt a few at a time."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        chunks = [
            (number, list(group[start : start + _CHUNK]))
            for number, group in enumerate(responses)
            for start in range(0, len(group), _CHUNK)
        ]
        rewards: list[list[float]] = [[] for _ in responses]
        found = self.scorer.score([prompts[number] for number, _ in chunks], [chunk for _, chunk in chunks])
        for (number, _), values in zip(chunks, found, strict=True):
            rewards[number] += values
        return rewards


@dataclass(frozen=True)
class ScorerWithNotes(_Wrapped):
    assistance: Assistance

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        groups = list(zip(prompts, responses, strict=True))
        self.assistance.prepare([(prompt, text) for prompt, group in groups for text in group])
        shown = [[with_notes(text, self.assistance.notes(prompt, text)) for text in group] for prompt, group in groups]
        return self.scorer.score(prompts, shown)


@dataclass(frozen=True)
class Sampler:
    shared: Shared  # the backbone
    adapter: str  # the adapter's name on it
    max_new_tokens: int  # maximum response length
    costs: Costs = field(default_factory=Costs)  # counts generated tokens

    def sample(
        self, prompts: Sequence[Prompt], count: int = 1, *, seed: int = 0, temperature: float = 1.0
    ) -> list[list[str]]:
        sampling = Sampling(self.max_new_tokens, temperature)
        drawn = draw(self.shared.backbone, self.adapter, self.shared.chat, prompts, sampling, samples=count, seed=seed)
        self.costs.tokens += sum(one.tokens for group in drawn for one in group)
        return [[one.text for one in group] for group in drawn]

    def fits(self, prompt: Prompt) -> bool:
        chat = self.shared.chat
        return chat.max_length is None or len(chat.uncut.prompt_ids(prompt)) <= chat.max_length


@dataclass(frozen=True)
class BestOfN:
    """An untrained policy: the response with the highest reward."""

    task: Task  # The task. If it can list its candidates, the policy selects among them; otherwise it samples.
    scorer: ResponseScorer  # computes the rewards
    sampler: Sampler | None  # samples responses; None if the task always lists its candidates
    n: int  # number of samples per prompt
    seed: int = 0  # seed for sampling and for breaking ties
    costs: Costs = field(default_factory=Costs)  # counts scored responses

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        groups = [self.task.candidates(prompt) for prompt in prompts]
        open_ended = [number for number, group in enumerate(groups) if not group]
        if open_ended and self.sampler is not None:
            sampled = self.sampler.sample([prompts[number] for number in open_ended], self.n, seed=self.seed)
            for number, group in zip(open_ended, sampled, strict=True):
                groups[number] = group
        asked = [number for number, group in enumerate(groups) if group]
        chosen, rng = [""] * len(prompts), random.Random(self.seed)
        found = self.scorer.score([prompts[i] for i in asked], [groups[i] for i in asked])
        self.costs.scored += sum(map(len, found))
        for number, rewards in zip(asked, found, strict=True):
            order = rng.sample(range(len(rewards)), len(rewards))
            best = max(order, key=lambda place: -math.inf if math.isnan(rewards[place]) else rewards[place])
            chosen[number] = groups[number][best]
        return chosen

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt fits the context with each candidate."""
        candidates = self.task.candidates(prompt)
        if not candidates:
            return self.sampler is None or self.sampler.fits(prompt)
        return all(_Wrapped(self.scorer).fits(prompt, text) for text in candidates)


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy trained with PPO; responds greedily."""

    sampler: Sampler

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        return [group[0] for group in self.sampler.sample(prompts, temperature=0.0)]

    def fits(self, prompt: Prompt) -> bool:
        return self.sampler.fits(prompt)


@dataclass(frozen=True)
class Agent:
    """A solved task: a policy and its reward model."""

    name: str  # the node
    task: Task
    scorer: ResponseScorer  # the reward model
    policy: BestOfN | TrainedPolicy
    costs: Costs  # the cost of using the agent since it was loaded

    def respond(self, prompts: Sequence[Prompt]) -> list[str]:
        """One response to each prompt; "" if the prompt does not fit: a helper must not judge what it cannot read."""
        fits = [self.policy.fits(prompt) for prompt in prompts]
        if left := fits.count(False):
            said = "%s: %d of %d prompts do not fit its context and get an empty answer"
            logger.warning(said, self.name, left, len(prompts))
        whole = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        written = iter(self.policy.respond(whole) if whole else ())
        return [next(written) if fit else "" for fit in fits]


def reward_adapter(name: str) -> str:
    return f"{name}_reward"


def policy_adapter(name: str) -> str:
    return f"{name}_policy"


def load_reward(shared: Shared, folder: Path, name: str) -> ChunkedScorer:
    adapter = reward_adapter(name)
    drop_adapters(shared, adapter)
    model = put_reward(shared.backbone, folder, chat=shared.chat, base_model=shared.base_model, adapter=adapter)
    return ChunkedScorer(RewardScorer(model.eval(), shared.chat, name))


def load_sampler(shared: Shared, folder: Path, adapter: str, max_new_tokens: int, costs: Costs) -> Sampler:
    drop_adapters(shared, adapter)
    put_policy(shared.backbone, folder, adapter)
    return Sampler(shared, adapter, max_new_tokens, costs)


def drop_adapters(shared: Shared, *adapters: str) -> None:
    for adapter in adapters:
        if shared.backbone.has_adapter(adapter):
            shared.backbone.remove_adapter(adapter)


def total_costs(parts: Sequence[Costs]) -> Costs:
    total = Costs()
    for one in parts:
        for name in ("checks", "comparisons", "tokens", "scored"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        for step, seconds in one.seconds.items():
            total.seconds[step] = total.seconds.get(step, 0.0) + seconds
    return total
