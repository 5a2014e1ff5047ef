"""Checks after training: the saved model must give the rewards of the trained one, or the run fails.

The model is reloaded twice: by this package, where rewards must be equal bit for bit, and with plain transformers and
the saved chat template, as other programs load it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rrm_lm.api.output_run import OutputRun
from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.feedback.records import Comparison
from rrm_lm.models.portable import RECORDED, Conversation, messages_of, misread
from rrm_lm.models.pretrained import load_sequence_classifier, rounding
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.reward_files import load_classifier, load_reward_model, merge_reward_model, write_examples
from rrm_lm.models.saving.adapters import check_reloads
from rrm_lm.models.sharding import full_copy_fits
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.examples import RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer

logger = logging.getLogger(__name__)

_CHECKED = 4  # examples whose rewards must be identical after a reload
_COMPARED = 12  # conversations scored with plain transformers
_TRIED = 20  # comparisons that these conversations are chosen from


def plain_model(trainer: RewardTrainer) -> RewardModel:
    """The trained model without its training wrappers, including the one for mixed precision."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def save_and_compare(
    trainer: RewardTrainer,
    run: OutputRun,
    chat: ChatFormat,
    comparisons: Sequence[Comparison] | None,
    loading: dict[str, Any] | None,
    merge: dict[str, Any] | None,
) -> None:
    """Save the trained model, reload it and compare the rewards. Called by all processes; the main one compares.

    `comparisons` are scored with plain transformers; None if other programs cannot read the model. `loading` loads the
    backbone again; None if it is not saved anywhere. `merge` loads it for the merged checkpoint; None to write none.
    Raises CheckpointError if rewards differ.
    """
    trainer.save_whole(run.folder)
    held_out: Any = trainer.eval_dataset
    if isinstance(held_out, Mapping):
        held_out = next(iter(held_out.values()), None)
    model, sample = plain_model(trainer), list(held_out or trainer.train_dataset)[:_CHECKED]
    rewards = members_of(model, sample)
    talks = [] if comparisons is None else conversations(chat, comparisons)
    read = members_by_template(model, chat, talks) if talks else None
    if not run.main:
        return
    if loading is None:
        logger.warning("saved to %s; not reloaded: the base model is not in a folder, save it as well", run.folder)
        return
    check_saved(rewards, model, run.folder, sample, **loading)
    if read is None:
        return
    record_rewards(read, model, run.folder, chat, talks)
    check_plain(read, model, run.folder, chat, talks, **loading)
    if merge is not None:
        write_merged(read, model, run.folder, run.folder / "merged", chat, talks, **merge)


def members_of(model: RewardModel, examples: list[RewardExample]) -> Tensor:
    """(lines, heads) rewards of each member. Called by all processes, if the model is sharded."""
    model.eval()
    rows = [row for example in examples for row in example.rows]
    lines = [line for example in examples for line in example.lines]
    with torch.no_grad(), model.backbone.uncompiled():
        batch = collate(rows, model.backbone.pad_id).to(model.device)
        return model(batch, lines, with_critiques=False).members


def check_saved(
    trained: Tensor, model: RewardModel, folder: Path, examples: list[RewardExample], **loading: Any
) -> None:
    """Reload a saved reward model into a new object and compare its rewards. `trained` are the rewards of the trained
    model (:func:`members_of`) for `examples`. Raises CheckpointError if a reward differs in any bit.
    """
    if not full_copy_fits(model):
        logger.warning("saved to %s; not reloaded, since the whole model does not fit on one device", folder)
        return
    fresh, _ = load_reward_model(folder, **loading)
    fresh.backbone.can_share = model.backbone.can_share
    before, after = trained.tolist(), members_of(fresh.to(model.device), examples).tolist()
    if before != after:
        what = f"The saved model gives other rewards than the trained one ({after[:2]} instead of {before[:2]})"
        remedy = "do not use this folder; please report the model and the library versions"
        raise CheckpointError(what, where=str(folder), expected="identical rewards after a reload", remedy=remedy)
    logger.info("saved to %s; reloaded, and its rewards are identical", folder)


def check_classifier(model: RewardModel, tokenizer: Any, args: ModelArguments, merge: bool) -> None:
    """Before training: the adapter must load as a sequence classifier, or other programs cannot read it. Raises
    ModelError if it does not, and `merge` asks for a checkpoint for other programs; without `merge`, a warning.
    """
    save, heads = partial(model.save, tokenizer=tokenizer), model.settings.ensemble_heads
    try:
        check_reloads(save, AutoModelForSequenceClassification, args.trust_remote_code, num_labels=heads)
    except ModelError as error:
        if merge:
            raise
        logger.warning("only rrm_lm will read this reward model: %s", error.what)


def conversations(chat: ChatFormat, comparisons: Sequence[Comparison]) -> list[Conversation]:
    """Conversations for the comparison with plain transformers: fixed ones, then the first of the feedback.

    Conversations that are truncated or hold special tokens are left out: other programs treat them differently.
    """
    made = [(one.prompt, response) for one in comparisons[:_TRIED] for response in (one.chosen, one.rejected)]
    return [one for one in (*RECORDED, *made) if one[1].strip() and chat.is_as_rendered(*one)][:_COMPARED]


def members_by_template(model: RewardModel, chat: ChatFormat, talks: Sequence[Conversation]) -> Tensor:
    """(conversations, heads) rewards of each member. Called by all processes, if the model is sharded."""
    lines = [chat.encode(prompt, [response]).lines[0][0] for prompt, response in talks]
    rows = model.backbone.rows([line.ids for line in lines])
    return members_of(model, [RewardExample(tuple(rows), tuple(lines))])


def record_rewards(
    members: Tensor, model: RewardModel, folder: Path, chat: ChatFormat, talks: Sequence[Conversation]
) -> None:
    """Record the rewards of the fixed conversations in a saved model. `members` are the rewards of each member for the
    conversations `talks` (:func:`members_by_template`).
    """
    rewards = model.settings.combination(members.float().cpu()).tolist()
    found = [(talk, reward) for talk, reward in zip(talks, rewards, strict=True) if talk in RECORDED]
    write_examples(folder, [(t, chat.encode(t[0], [t[1]]).lines[0][0].ids, reward) for t, reward in found])


def check_plain(
    trained: Tensor, model: RewardModel, folder: Path, chat: ChatFormat, talks: Sequence[Conversation], **loading: Any
) -> None:
    """Load a saved adapter with plain transformers and PEFT, render with the saved template, and compare rewards.
    `trained` are the rewards of the trained model (:func:`members_by_template`) for the conversations `talks`. Raises
    CheckpointError if rewards differ by more than rounding error.
    """
    if not full_copy_fits(model):
        return
    dtype = model.backbone.causal_lm.dtype
    try:
        plain: Any = load_classifier(folder, chat.tokenizer.pad_token_id, **{**loading, "dtype": dtype})
    except ModelError as error:
        logger.warning("only rrm_lm reads this reward model: %s", error.what)
        return
    gap = _gap(trained, plain, folder, chat, talks, model, rounding(dtype, model.device))
    logger.info("plain transformers and PEFT give the same rewards, within %.1g", gap)


def write_merged(
    trained: Tensor,
    model: RewardModel,
    folder: Path,
    output: Path,
    chat: ChatFormat,
    talks: Sequence[Conversation],
    **loading: Any,
) -> None:
    """Write the merged checkpoint, load it with plain transformers, and compare rewards.

    `trained` are the rewards of the trained model (:func:`members_by_template`) for the conversations `talks`. `folder`
    holds its adapter; for `loading` see :func:`rrm_lm.models.reward_files.merge_reward_model`. Raises CheckpointError
    if rewards differ by more than the rounding error of the backbone's precision; the merged checkpoint is float32.
    """
    merge_reward_model(folder, output, chat.tokenizer, **loading)
    plain: Any = load_sequence_classifier(str(output), dtype="float32")
    mean = trained.mean(-1, keepdim=True)  # the merged checkpoint returns the mean of the heads
    record_rewards(mean, model, output, chat, talks)
    gap = _gap(mean, plain, output, chat, talks, model, rounding(model.backbone.causal_lm.dtype, model.device))
    logger.info("merged checkpoint in %s; plain transformers gives the same rewards, within %.1g", output, gap)


def _gap(
    trained: Tensor,
    plain: Any,
    folder: Path,
    chat: ChatFormat,
    talks: Sequence[Conversation],
    model: RewardModel,
    allowed: float,
) -> float:
    """The largest difference of the rewards, relative to 1 + the largest reward. Raises CheckpointError if it is larger
    than `allowed`.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    texts = [tokenizer.apply_chat_template(messages_of(*talk), tokenize=False) for talk in talks]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    if getattr(plain, "hf_device_map", None) is None:
        plain = plain.to(model.device)
    with torch.no_grad():
        read = plain(**inputs.to(plain.device)).logits.float().cpu()
    trained = trained.float().cpu()
    gap = float((read - trained).abs().max() / (1 + trained.abs().max()))
    if not gap <= allowed:
        why = misread(tokenizer, chat, talks)
        raise CheckpointError(
            f"Plain transformers reads other rewards from the saved model ({read.flatten()[:2].tolist()} instead of "
            f"{trained.flatten()[:2].tolist()}){f': {why}' if why else ''}",
            where=str(folder),
            expected=f"the same rewards to {allowed:g}",
            remedy="score with rrm_lm alone; please report the model and the library versions",
        )
    return gap
