"""After training: what was saved must give the rewards of what was trained, or the run fails."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm_lm.errors import CheckpointError
from rrm_lm.models.pretrained import load_sequence_classifier
from rrm_lm.models.reward import RewardModel, load_reward_model, merge_reward_model
from rrm_lm.models.sharding import fits
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.examples import Example
from rrm_lm.training.reward_trainer import RewardTrainer

logger = logging.getLogger(__name__)

_MERGED_GAP = 1e-3  # how far rewards may be apart after merging in float32, relative to 1 + reward


def plain_model(trainer: RewardTrainer) -> RewardModel:
    """The trained model without what was put around it for training, mixed precision included."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def members_of(model: RewardModel, examples: list[Example]) -> Tensor:
    """(lines, heads) rewards of each member. Called by all processes, if the model is sharded."""
    model.eval()
    rows = [row for example in examples for row in example.rows]
    lines = [line for example in examples for line in example.lines]
    with torch.no_grad():
        batch = collate(rows, model.backbone.pad_id).to(model.device)
        return model(batch, lines, with_critiques=False).members


def check_saved(trained: Tensor, model: RewardModel, folder: Path, examples: list[Example], **loading: Any) -> None:
    """Reload a saved reward model in a fresh object and compare.

    Args:
        trained: Its rewards as it was trained (:func:`members_of`).
        model: The model.
        folder: Where it was saved.
        examples: What the rewards are compared on.
        loading: How its backbone was loaded.

    Raises:
        CheckpointError: Any reward is not the same, bit for bit.
    """
    if not fits(model):
        logger.warning("saved to %s; not reloaded, since the whole model does not fit on one device", folder)
        return
    fresh, _ = load_reward_model(folder, **loading)
    fresh.backbone.can_share = model.backbone.can_share
    before, after = trained.tolist(), members_of(fresh.to(model.device), examples).tolist()
    if before != after:
        raise CheckpointError(
            f"The saved model gives other rewards than the trained one ({after[:2]} instead of {before[:2]})",
            where=str(folder),
            expected="identical rewards after a reload",
            remedy="do not use this folder; please report the model and the library versions",
        )
    logger.info("saved to %s; reloaded, and its rewards are identical", folder)


def write_merged(
    trained: Tensor,
    model: RewardModel,
    folder: Path,
    output: Path,
    chat: ChatFormat,
    examples: list[Example],
    **loading: Any,
) -> None:
    """Write the merged checkpoint, reload it and compare.

    Args:
        trained: Its rewards as it was trained (:func:`members_of`).
        model: The model.
        folder: Where its adapter was saved.
        output: Where the merged checkpoint goes.
        chat: Its chat format; the tokenizer is saved.
        examples: What the rewards are compared on.
        loading: See :func:`rrm_lm.models.reward.merge_reward_model`.

    Raises:
        CheckpointError: Rewards differ by more than rounding. Of a backbone that was not trained on in float32 the
            difference is only told: the merged checkpoint is float32 and computes more exactly.
    """
    merge_reward_model(folder, output, chat.tokenizer, **loading)
    classifier: Any = load_sequence_classifier(str(output), dtype="float32")
    lines = [line for example in examples for line in example.lines]
    with torch.no_grad():
        merged = [float(classifier(torch.tensor([line.ids[: line.reward_at + 1]])).logits) for line in lines]
    rewards = trained.mean(-1).tolist()  # one number is their mean, however they are combined here
    gap = max(abs(a - b) / (1 + abs(a)) for a, b in zip(rewards, merged, strict=True))
    if model.backbone.causal_lm.dtype == torch.float32 and gap > _MERGED_GAP:
        raise CheckpointError(
            f"The merged checkpoint gives other rewards than the adapter ({merged[:2]} instead of {rewards[:2]})",
            where=str(output),
            expected=f"the same rewards to {_MERGED_GAP:g}",
            remedy="use the adapter; please report the model and the library versions",
        )
    logger.info("merged checkpoint in %s; its rewards differ by at most %.1g", output, gap)
