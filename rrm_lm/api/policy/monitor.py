"""The over-optimization monitor: held-out responses during training, their rewards, and the KL divergence."""

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
from rrm_lm.training.over_optimisation import BestPolicy, Measure, Measurement, OverOptimisationCallback
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.reward_sources import RewardSum
from rrm_lm.training.trackers import log_table

logger = logging.getLogger(__name__)

_SHOWN = 20  # samples in a tracker's table


@dataclass
class Optimised:
    """The optimized reward: the weighted sum, less the penalty for responses that do not end."""

    rewards: RewardSum
    tokenizer: Any
    end_ids: Sequence[int]  # tokens that end a response
    penalty: float | None  # penalty for a response without an end token; None for no penalty

    def of_drawn(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]) -> list[list[float]]:
        """The reward of each response, by prompt."""
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
    """The over-optimization monitor of one run. Creating it adds its callback to the trainer.

    Args:
        args: How often to measure, and whether to stop training.
        config: Sampling settings of the policy.
        training: The training to monitor.
        prompts: Held-out prompts to respond to.
        gold: Name and function of the reward that is not optimized.
        folder: Folder for the measurements.

    Attributes:
        measure: Samples the current policy and scores the responses.
        callback: Holds the measurements.
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
        # KL is defined for the whole distribution, so top_p and top_k are not used.
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
            ends=trainer.end_ids,
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
                partial(trainer.save_model, _internal_call=True),  # without an upload
                trainer._load_from_checkpoint,
                writes=trainer.args.should_save,
                wait=trainer.accelerator.wait_for_everyone,
            ),
            log=trainer.log,
            show=partial(self._show, trainer),
        )
        trainer.add_callback(self.callback)

    def _show(self, trainer: Any, taken: Measurement) -> None:
        """Send the first samples of a measurement to the trackers."""
        rows = [
            (self.prompts[one.prompt][-1].content, one.response, one.gold, one.proxy, one.kl)
            for one in taken.samples[:_SHOWN]
        ]
        log_table(trainer, "held_out/samples", ("prompt", "response", *taken.names, "KL"), rows)


def _proxy_name(rewards: RewardSum, gold: str) -> str:
    name = rewards.sources[0].name if len(rewards.sources) == 1 else "sum of rewards"
    return "proxy" if name == gold else name
