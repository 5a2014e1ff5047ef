"""What watches a policy while it learns: its answers to held-out prompts, their rewards, and how far it has moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rrm_lm.api.policy.trainers import Training
from rrm_lm.evaluation.policies.gold import RewardFunction
from rrm_lm.evaluation.policies.monitors import watch
from rrm_lm.evaluation.policies.samples import Drawn, held_out_probe
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.sharding import with_full_params
from rrm_lm.settings.training import MonitorArguments
from rrm_lm.training.over_optimisation import BestPolicy, Measure, OverOptimisationCallback
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.reward_sources import RewardSum

logger = logging.getLogger(__name__)


@dataclass
class Optimised:
    """The reward as training has it: the weighted sum, less the penalty for answers that do not end.

    Attributes:
        rewards: The sum.
        tokenizer: Of the policy.
        end_ids: Tokens that end a response in training.
        penalty: For a response without one; None for none.
    """

    rewards: RewardSum
    tokenizer: Any
    end_ids: Sequence[int]
    penalty: float | None

    def of_drawn(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]) -> list[list[float]]:
        """For each prompt, the reward of each of its responses."""
        pairs = [(prompt, one.line) for prompt, group in zip(prompts, drawn, strict=True) for one in group]
        items = [PromptItem(line.ids[: line.response_start], prompt) for prompt, line in pairs]
        responses = [line.ids[line.response_start :] for _, line in pairs]
        rollouts = Rollouts.of(items, responses, self.tokenizer, self.end_ids, torch.device("cpu"))
        total = self.rewards.total(self.rewards([p for p, _ in pairs], rollouts.texts, rollouts.lines))
        if self.penalty is not None:
            total = [value - self.penalty * (not done) for value, done in zip(total, rollouts.finished, strict=True)]
        values = iter(total)
        return [[next(values) for _ in group] for group in drawn]


class Monitor:
    """The over-optimisation monitor of one run, which its trainer carries from here on.

    Args:
        args: How often, and whether it stops the training.
        config: How the policy samples.
        training: What it watches.
        prompts: The held-out prompts that are measured.
        gold: Name and function of the reward that is not optimised.
        folder: Where the measurements are written.

    Attributes:
        measure: What the policy answers now.
        callback: Has the measurements.
    """

    def __init__(
        self,
        args: MonitorArguments,
        config: PPOConfig,
        training: Training,
        prompts: Sequence[Prompt],
        gold: tuple[str, RewardFunction],
        folder: Path,
    ) -> None:
        self.prompts = list(prompts)
        trainer, backbone, chat = training.trainer, training.policy.backbone, training.policy.chat
        rewards: RewardSum = trainer.rewards
        # Of the whole distribution, which alone a KL divergence is of.
        sampling = Sampling(config.response_length, config.temperature)
        if config.top_p < 1 or config.top_k > 0:
            logger.info("held-out answers are drawn without top_p and top_k: KL is that of whole distributions")
        self.measure: Measure = held_out_probe(
            lambda: (backbone, training.policy.adapter),
            (backbone, training.reference),
            chat,
            self.prompts,
            sampling,
            proxy=Optimised(rewards, chat.tokenizer, trainer.end_ids, config.missing_eos_penalty),
            gold=gold[1],
            seed=config.seed,
            batch_tokens=config.rollout_batch_tokens,
            micro_batch_tokens=config.micro_batch_tokens,
            within=lambda function: with_full_params(trainer.model, function),
        )
        self.callback = OverOptimisationCallback(
            self.measure,
            watch,
            folder,
            names=(gold[0], _proxy_name(rewards, gold[0])),
            every=args.monitor_steps * training.steps_per_update,
            stop=args.stop_when_over_optimised,
            best=BestPolicy(
                folder,
                partial(trainer.save_model, _internal_call=True),  # which uploads nothing
                trainer._load_from_checkpoint,
                writes=trainer.args.should_save,
                wait=trainer.accelerator.wait_for_everyone,
            ),
            log=trainer.log,
        )
        trainer.add_callback(self.callback)


def _proxy_name(rewards: RewardSum, gold: str) -> str:
    name = rewards.sources[0].name if len(rewards.sources) == 1 else "sum of rewards"
    return "proxy" if name == gold else name
