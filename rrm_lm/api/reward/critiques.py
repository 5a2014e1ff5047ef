"""Reward models that write critiques first: the trainer of their first phase, and their own critiques."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rrm_lm.feedback.records import Comparison
from rrm_lm.models.decoding.generation import sampling_bar
from rrm_lm.models.self_critique import with_own_critiques
from rrm_lm.models.sharding import with_full_params
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer

logger = logging.getLogger(__name__)


def make_critic(trainer: RewardTrainer) -> RewardTrainer:
    """The trainer of the first phase, in which the model learns to write critiques. Nothing is saved."""
    config: Any = trainer.args
    written = [RewardExample(e.rows, e.lines, origin=e.origin) for e in trainer.train_dataset if e.critique_tokens]
    config = replace(
        config,
        num_train_epochs=config.critic_epochs,
        max_steps=-1,
        critique_weight=config.critique_weight if config.critique_weight > 0 else 1.0,
        critique_weight_end=None,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    return RewardTrainer(trainer.model, config, written, processing_class=trainer.processing_class)


def own_critiques(
    model: Any, builder: ExampleBuilder, comparisons: Sequence[Comparison], args: Any
) -> list[RewardExample]:
    """Examples with the model's own critiques instead of people's. Called by all processes, if it is sharded."""
    logger.info("writing own critiques of %d pairs", len(comparisons))
    with sampling_bar("sampling", "critique", shown=bool(args.should_save)) as progress:
        lines = with_full_params(
            model,
            with_own_critiques,
            model,
            builder.chat,
            [c.prompt for c in comparisons],
            [[c.chosen, c.rejected] for c in comparisons],
            samples=args.critique_samples,
            temperature=args.critique_temperature,
            seed=args.seed,
            progress=progress,
        )
    return builder.own_critiques(comparisons, lines)
