"""Prompts for policy training: read, split like feedback, and truncated to the model's context."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rrm_lm.api.data.heldout import settle_template
from rrm_lm.api.start import fitted
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.prompts import as_feedback, prompt_sources
from rrm_lm.feedback.records import Prompt, prompt_id
from rrm_lm.feedback.splits import Stratum, limit_prompts, split_by_prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.settings.data import PromptArguments, PromptSplit
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.template_checks import check_template

logger = logging.getLogger(__name__)


def read_prompts(
    args: PromptArguments, rows: dict[Prompt, Mapping[str, Any]] | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct prompts: (training, held-out). `rows` receives the row of each prompt, with all its columns. Raises
    ConfigError: no prompts are named; DataError: a file that cannot be read, a prompt without a user turn, or nothing
    to split.
    """
    train = prompt_sources(args.prompts, **args.reading(args.dataset_train_split), rows=rows)
    heldout: dict[Prompt, Stratum] | None = None
    if args.eval_prompts:
        heldout = prompt_sources(args.eval_prompts, **args.reading(args.dataset_test_split), rows=rows)
    return split_prompts(args, train, heldout)


def split_prompts(
    split: PromptSplit, train: Mapping[Prompt, Stratum], heldout: Mapping[Prompt, Stratum] | None
) -> tuple[list[Prompt], list[Prompt]]:
    """As :func:`read_prompts`, for prompts with their strata. Without `heldout` prompts, a share of `train` is held
    out.
    """
    if heldout is not None:
        _tell_overlap(train, heldout)
    elif split.eval_fraction > 0:
        train, heldout = _hold_out(train, split.eval_fraction, split.split_seed)
    prompts = limit_prompts(train, split.max_prompts, split.split_seed)
    logger.info("%d prompts to train on; held out: %d", len(prompts), len(heldout or ()))
    return prompts, list(heldout or ())


def _hold_out(
    prompts: Mapping[Prompt, Stratum], fraction: float, seed: int
) -> tuple[dict[Prompt, Stratum], dict[Prompt, Stratum]]:
    """Split like feedback: a reward model trained on the same file has not seen the held-out prompts either."""
    train, heldout = split_by_prompt(as_feedback(prompts), fraction, seed)
    sides = ([one.prompt for one in side.demonstrations] for side in (train, heldout))
    learned, held = ({prompt: prompts[prompt] for prompt in side} for side in sides)
    return learned, held


def _tell_overlap(train: Collection[Prompt], heldout: Collection[Prompt]) -> None:
    known = set(map(prompt_id, train))
    shared = sum(prompt_id(prompt) in known for prompt in heldout)
    if shared:
        logger.warning("%d of %d held-out prompts are also training prompts", shared, len(heldout))


def renderable_prompts(
    chat: ChatFormat, prompts: Sequence[Prompt], heldout: Sequence[Prompt], skip_bad_rows: bool | None
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts, and held-out prompts, without those that the chat template refuses, which are skipped bad rows. Raises
    DataError if it refuses some, and bad rows are not skipped.
    """
    records = as_feedback(dict.fromkeys([*prompts, *heldout], ("", ""))).demonstrations
    checks = check_template(chat, records)
    settle_template(checks, bool(skip_bad_rows))
    refused = {record.prompt for record in records if record.origin in checks.origins}
    train, held = ([prompt for prompt in side if prompt not in refused] for side in (prompts, heldout))
    if not train:
        what, remedy = "the chat template refuses all prompts", "pass another one with --chat_template_path"
        raise DataError(what, where="prompts", expected="prompts that it can render", remedy=remedy)
    return train, held


def fit_chat(
    chat: ChatFormat, backbone: Backbone, max_length: int | None, response_length: int, prompts: Sequence[Prompt]
) -> tuple[ChatFormat, int | None]:
    """The chat format that truncates prompts so that a response fits, and the longest prompt plus response in tokens.
    Raises ConfigError if a response alone is as long as `max_length`.
    """
    longest = fitted(max_length, backbone)
    if longest is not None and response_length >= longest:
        raise ConfigError(
            f"{response_length} tokens of a response leave no tokens for the prompt, with {longest} in all",
            where="response_length" if max_length is None else "max_length",
            remedy="set a smaller response_length" + ("" if max_length is None else ", or a larger max_length"),
        )
    if max_length is None or longest is None:
        return ChatFormat(chat.tokenizer), longest  # the trainer raises an error for a prompt that does not fit
    room, whole = longest - response_length, ChatFormat(chat.tokenizer)
    shortened = sum(len(whole.prompt_ids(prompt)) > room for prompt in prompts)
    if shortened:
        logger.warning(
            "%d of %d prompts are longer than the %d tokens that max_length leaves for them; their oldest turns are "
            "dropped, or their beginning",
            *(shortened, len(prompts), room),
        )
    return ChatFormat(chat.tokenizer, room), longest
