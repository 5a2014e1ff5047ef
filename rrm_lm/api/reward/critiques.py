"""Reward models that write critiques first: the settings of their first phase, and their own critiques."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from rrm_lm.feedback.records import Comparison
from rrm_lm.models.decoding.generation import Progress
from rrm_lm.models.self_critique import with_own_critiques
from rrm_lm.models.sharding import with_full_params
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample

logger = logging.getLogger(__name__)


def critic_config(config: Any) -> Any:
    """Settings of the first phase, in which the model learns to write critiques. Nothing is saved."""
    return replace(
        config,
        num_train_epochs=config.critic_epochs,
        max_steps=-1,
        critique_weight=config.critique_weight if config.critique_weight > 0 else 1.0,
        critique_weight_end=None,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
    )


def own_critiques(
    model: Any, builder: ExampleBuilder, comparisons: Sequence[Comparison], args: Any
) -> list[RewardExample]:
    """Examples with the model's own critiques instead of people's. Called by all processes, if it is sharded."""
    logger.info("writing own critiques of %d pairs", len(comparisons))
    with _bar(bool(args.should_save)) as progress:
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


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    """A progress bar for sampling."""
    with tqdm(desc="sampling", unit="critique", disable=not shown) as bar:

        def tell(done: int, total: int, tokens_per_second: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"{tokens_per_second:.0f} tokens/s", refresh=False)
            bar.update(done - bar.n)

        yield tell
