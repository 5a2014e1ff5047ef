"""Held-out feedback, and its overlap with the training set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import ReadCounts
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback, merge_feedback
from rrm_lm.feedback.splits import LeakageReport, leakage, limit_comparisons, split_by_prompt
from rrm_lm.settings.data import DataArguments, DatasetSource, FeedbackSplit, HeldOut
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.template_checks import TemplateChecks
from rrm_lm.training.reward.examples import FitCounts

logger = logging.getLogger(__name__)


def load(data: DatasetSource, names: Sequence[str], split: str) -> Feedback:
    """Load the named sets and merge them."""
    options = data.reading(split)
    return merge_feedback(*(load_feedback(name, **options) for name in names))


def read_sources(data: DataArguments) -> tuple[Feedback, Feedback | None]:
    """Read the training feedback, and the evaluation set if the settings name one."""
    train = load(data, data.dataset_name, data.dataset_train_split)
    logger.info("read %s", train.counts.summary())
    if not data.eval_dataset_name:
        return train, None
    heldout = load(data, data.eval_dataset_name, data.dataset_test_split)
    logger.info("held out: read %s", heldout.counts.summary())
    return train, heldout


def hold_out(split: HeldOut, train: Feedback, heldout: Feedback | None) -> tuple[Feedback, Feedback]:
    """Return (training, held-out). Without an evaluation set, hold out the share `eval_fraction` of the prompts."""
    if heldout is None and split.eval_fraction > 0:
        train, heldout = split_by_prompt(train, split.eval_fraction, split.split_seed)
        heldout = replace(heldout, counts=ReadCounts())  # skipped rows are counted with the training set
    if isinstance(split, FeedbackSplit) and split.max_comparisons is not None:
        train = limit_comparisons(train, split.max_comparisons, split.split_seed)
    return train, heldout if heldout is not None else Feedback()


def check_leaks(split: FeedbackSplit, train: Feedback, heldout: Feedback, where: str) -> LeakageReport | None:
    """Report how far the held-out feedback overlaps the training set; None if nothing is held out. Raises DataError if
    they overlap and `fail_on_leak` is set.
    """
    if not len(heldout):
        return None
    report = leakage(train, heldout, split.leak_threshold)
    (logger.warning if report.found else logger.info)(report.summary())
    if report.found and split.fail_on_leak:
        raise DataError(
            f"The held-out feedback overlaps the training set ({report.summary()})",
            where=where,
            expected="no held-out prompt or response in the training set, as --fail_on_leak asks",
            remedy="remove the overlapping rows, raise --leak_threshold, or leave out --fail_on_leak",
        )
    return report


def settle_template(checks: TemplateChecks, skip_bad_rows: bool | None) -> None:
    """Log what the chat template does to rows. Raise a DataError for rows that it refuses, unless bad rows are skipped.

    As when rows are read, None skips them only in sets that the user cannot edit, whose names end in a split.
    """
    names = {origin.file for origin in checks.origins}
    checks.settle(all(name.endswith("]") for name in names) if skip_bad_rows is None else skip_bad_rows)


def without_refused(feedback: Feedback, checks: TemplateChecks) -> Feedback:
    """Feedback without the rows that the chat template refuses."""
    if not checks.origins:
        return feedback
    return Feedback.of([one for one in feedback.records() if one.origin not in checks.origins], feedback.counts)


def check_learned(examples: Sequence[Any], counts: FitCounts, chat: ChatFormat, where: str) -> None:
    """Warn about what was cut or left out to fit. Raises DataError if no example is left."""
    if not examples:
        raise DataError(
            f"No feedback is left to train on ({'; '.join(counts.left_out())})",
            where=where,
            remedy="look at those rows; if the responses are cut away, raise --max_length",
        )
    if counts.shortened or counts.unusable:
        logger.warning("to fit max_length %s: %s", chat.max_length, counts.summary())


def sizes(feedback: Feedback) -> str:
    """`3 comparisons, 1 goal examples`, or `nothing`."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in feedback.sizes().items()) or "nothing"


def files(*parts: Feedback) -> str:
    """The files of the first part that has any, for messages."""
    named = (", ".join(file.file for file in part.counts.files) for part in parts)
    return next(filter(None, named), "train_dataset")
