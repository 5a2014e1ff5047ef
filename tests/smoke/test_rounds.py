"""Feedback on the policy's own responses is worth more than the same amount of feedback on other responses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from rrm_lm.evaluation.policies.samples import draw
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.asking.collection import collect
from rrm_lm.feedback.asking.overseers import Verdict
from rrm_lm.feedback.records import Comparison, Prompt
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import ScorerReward
from tests import tiny_training
from tests.tiny import lora, prompt_of, tiny_model, tiny_reward_model
from tests.tiny_policy import CHAT, config

torch.set_num_threads(1)

LABELS = 320  # comparisons in all, in one round or in two
WORDS = ("moon", "sea", "blue", "short", "long", "story", "clear", "yes", "not", "good")  # all that the policy says
LENGTH = 8  # words of its responses
REWARD_STEPS, POLICY_STEPS = 80, 40  # of each of two rounds; one round has twice as many


def gold(_prompt: Prompt, response: str) -> float:
    """Mentioning the moon once or twice is good, twice is better; more often is too much."""
    moons = response.count("moon")
    return float(min(moons, 2) - 2 * max(moons - 2, 0))


class ByGold:
    """Prefers the response with the higher gold reward."""

    name, limit = "by gold", "none"

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        values = [gold(prompt, response) for response in responses]
        return Verdict(None) if len(set(values)) == 1 else Verdict(values.index(max(values)))

    def critique(self, prompt: Prompt, response: str) -> str:
        return ""


def questions(count: int, seed: int) -> list[Prompt]:
    chance = random.Random(seed)
    return [prompt_of(" ".join(chance.choices(WORDS, k=chance.randint(3, 6))) + f" {n}?") for n in range(count)]


def by_others(count: int, seed: int) -> list[list[str]]:
    """Pairs of responses by people who never mention the moon more than twice."""
    chance = random.Random(seed)

    def response(moons: int) -> str:
        words = ["moon"] * moons + chance.choices(WORDS[1:], k=chance.randint(3, LENGTH - moons))
        return " ".join(chance.sample(words, len(words)))

    return [[response(moons) for moons in chance.sample(range(3), 2)] for _ in range(count)]


class Rounds:
    """A policy and its reward model, trained alternately."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.folder, self.seed, self.turns = folder, seed, 0
        self.agent = AgentModel.create(Backbone(_wordy(seed), pad_id=0), lora(random=False))
        self.reward: RewardModel = tiny_reward_model(seed=seed, random=False)
        self.records: list[Comparison] = []

    def responses(self, prompts: Sequence[Prompt], samples: int) -> list[list[str]]:
        drawn = draw(
            self.agent.backbone, POLICY, CHAT, prompts, Sampling(LENGTH), samples=samples, seed=self.seed + self.turns
        )
        return [[one.text for one in group] for group in drawn]

    def ask(self, count: int, *, own: bool) -> None:
        """New comparisons of the policy's own responses, or of responses by others."""
        prompts = questions(2 * count, seed=self.seed * 10 + self.turns)
        texts = self.responses(prompts, 2) if own else by_others(2 * count, self.seed)
        found = collect(ByGold(), prompts, texts, critiques=False, round_number=self.turns + 1, seed=self.seed)
        assert len(found.records) >= count
        self.records += found.records[:count]

    def learn(self, reward_steps: int, policy_steps: int) -> None:
        """Train the reward model on all comparisons so far, then the policy on what it rewards."""
        self.turns += 1
        args = tiny_training.config(
            self.folder / f"reward_{self.turns}",
            per_device_train_batch_size=16,
            max_steps=reward_steps,
            critique_weight=0.0,
        )
        examples = ExampleBuilder(CHAT, self.reward.backbone, with_critiques=False).comparisons(self.records)
        RewardTrainer(self.reward, args, examples, processing_class=CHAT.tokenizer).train()
        PPOTrainer(
            config(
                self.folder / f"policy_{self.turns}", per_device_train_batch_size=32, response_length=LENGTH,
                max_steps=policy_steps, kl_coef=0.01,
            ),
            CHAT.tokenizer,
            self.agent,
            chat=CHAT,
            train_dataset=questions(64, seed=1000 + self.turns),
            rewards=[ScorerReward(RewardScorer(self.reward, CHAT))],
        ).train()  # fmt: skip

    def score(self) -> float:
        """Mean gold reward on held-out prompts."""
        prompts = questions(32, seed=9999)
        groups = self.responses(prompts, 4)
        return mean(gold(prompt, text) for prompt, group in zip(prompts, groups, strict=True) for text in group)


def _wordy(seed: int) -> Any:
    """A tiny model that writes a few words, initially about equally often."""
    model = tiny_model(seed=seed)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(0.3 * model.get_output_embeddings().weight)
        head.bias.zero_()
        for word in WORDS:
            (token,) = CHAT.tokenizer(f" {word}", add_special_tokens=False).input_ids
            head.bias[token] = 8.0
    model.set_output_embeddings(head)
    return model.requires_grad_(False)


def after_one_round(folder: Path, seed: int) -> float:
    rounds = Rounds(folder, seed)
    rounds.ask(LABELS, own=False)
    rounds.learn(2 * REWARD_STEPS, 2 * POLICY_STEPS)
    assert len(rounds.records) == LABELS
    return rounds.score()


def after_two_rounds(folder: Path, seed: int) -> float:
    rounds = Rounds(folder, seed)
    for own in (False, True):
        rounds.ask(LABELS // 2, own=own)
        rounds.learn(REWARD_STEPS, POLICY_STEPS)
    assert len(rounds.records) == LABELS
    return rounds.score()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_rounds_are_better_than_one(tmp_path: Path) -> None:
    """From others the reward model learns that more of the moon is better, and too much of it they never show; the
    policy goes there, and only its own responses can tell."""
    start = Rounds(tmp_path / "start", seed=0).score()
    one = after_one_round(tmp_path / "one", seed=0)
    two = after_two_rounds(tmp_path / "two", seed=0)
    assert one < start - 1, (start, one)
    assert two > one + 2, (start, one, two)
