"""Checks after training: the saved policy must be identical to the trained one, or the run fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rrm_lm.errors import CheckpointError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.saving.adapters import check_reloads
from rrm_lm.models.saving.policies import Policy, PolicySettings, load_policy, merge_policy, save_policy
from rrm_lm.models.sharding import full_copy_fits, run_as_forward
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import collate, share
from rrm_lm.text.chat import Line

logger = logging.getLogger(__name__)

_MERGED_GAP = 1e-3  # maximum difference of log-probabilities (nats) after merging in float32


def save_and_compare(
    trainer: Any, policy: Policy, folder: Path, sample: Sequence[Line], model: ModelArguments, *, merge: bool
) -> None:
    """Save a trained policy, reload it and compare its logits; also write the merged checkpoint. All processes must
    call it. `sample` are lines whose response logits are compared; `merge` writes the merged checkpoint into
    ``folder/merged``. Raises CheckpointError if the saved policy gives different logits.
    """
    trainer.save_whole(folder)
    trainer.accelerator.wait_for_everyone()
    root = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    logits = logits_of(root, policy, sample)
    if not trainer.args.should_save:
        return
    check_saved_policy(logits, policy, folder, sample, **model.loading())
    if merge:
        code = model.trust_remote_code
        write_merged_policy(logits, policy, folder, folder / "merged", sample, trust_remote_code=code)


def check_before_training(policy: Policy, config: Any, args: ModelArguments) -> None:
    """Raise a ModelError if the untrained adapter does not load as a causal language model. Call it before sharding."""
    if config.should_save:
        settings = policy.settings or PolicySettings(str(args.model_name_or_path))
        rest = {"tokenizer": policy.chat.tokenizer, "settings": settings, "adapter": str(policy.adapter)}
        save = partial(save_policy, policy.backbone, **rest)
        check_reloads(save, AutoModelForCausalLM, args.trust_remote_code)


def logits_of(root: nn.Module, policy: Policy, lines: Sequence[Line]) -> list[Tensor]:
    """(response tokens, vocabulary) logits of the trained policy for each line. All processes must call it. `root` is
    the trainer's model with the policy, which may be sharded.
    """
    return run_as_forward(root, lambda: [_logits(policy.backbone, policy.adapter, line) for line in lines])


def check_saved_policy(
    trained: Sequence[Tensor], policy: Policy, folder: Path, lines: Sequence[Line], **loading: Any
) -> None:
    """Reload a saved policy into a new object and compare its logits. `trained` are the logits of the trained policy
    (:func:`logits_of`) for `lines`. Raises CheckpointError if a logit differs in any bit.
    """
    if not full_copy_fits(policy.backbone):
        logger.warning("saved to %s; not reloaded, because the full model does not fit on one device", folder)
        return
    fresh = load_policy(folder, **loading)
    fresh.backbone.to(policy.backbone.device)
    for line, before in zip(lines, trained, strict=True):
        after = _logits(fresh.backbone, fresh.adapter, line)
        if not torch.equal(before, after):
            gap = float((before - after).abs().max())
            what = f"The saved policy gives different logits than the trained one (up to {gap:.3g} apart)"
            remedy = "do not use this folder; please report the model and the library versions"
            raise CheckpointError(what, where=str(folder), expected="identical logits after a reload", remedy=remedy)
    logger.info("saved to %s; reloaded, and its logits are identical", folder)


def write_merged_policy(
    trained: Sequence[Tensor], policy: Policy, folder: Path, output: Path, lines: Sequence[Line], **loading: Any
) -> None:
    """Write the merged checkpoint, reload it with plain transformers and compare log-probabilities.

    `trained` are the logits of the trained policy (:func:`logits_of`) for `lines`. `folder` holds its adapter; for
    `loading` see :func:`rrm_lm.models.saving.policies.merge_policy`. Raises CheckpointError if log-probabilities differ
    by more than rounding error. If the backbone was not in float32, the difference is only logged, because the float32
    merged checkpoint is more exact.
    """
    merge_policy(folder, output, policy.chat.tokenizer, **loading)
    merged: Any = load_causal_lm(str(output), dtype="float32").to(policy.backbone.device)  # type: ignore[arg-type]
    gap = 0.0
    for line, before in zip(lines, trained, strict=True):
        with torch.no_grad():
            logits = merged(torch.tensor([line.ids], device=merged.device), use_cache=False).logits[0].float()
        own = before.log_softmax(-1)
        gap = max(gap, float((own - logits[line.response_start - 1 : -1].log_softmax(-1)).abs().max()))
    if policy.backbone.causal_lm.dtype == torch.float32 and gap > _MERGED_GAP:
        raise CheckpointError(
            f"The merged checkpoint gives different probabilities than the adapter (up to {gap:.3g} nats apart)",
            where=str(output),
            expected=f"the same log-probabilities to {_MERGED_GAP:g} nats",
            remedy="use the adapter; please report the model and the library versions",
        )
    logger.info("merged checkpoint in %s; its log-probabilities differ by at most %.1g", output, gap)


def _logits(backbone: Backbone, adapter: str | None, line: Line) -> Tensor:
    """(response tokens, vocabulary) logits."""
    backbone.eval()
    with torch.no_grad(), backbone.uncompiled():
        batch = collate([share([line.ids])], backbone.pad_id).to(backbone.device)
        states = backbone(batch, adapter)[0, line.response_start - 1 : len(line.ids) - 1]
        return backbone.logits(states, adapter)
