"""What is held out of training, and whether it overlaps what is learned from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import ReadCounts
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback, merge_feedback
from rrm_lm.feedback.splits import LeakageReport, leakage, split_by_prompt
from rrm_lm.settings.data import DataArguments
from rrm_lm.training.reward.config import RewardConfig

logger = logging.getLogger(__name__)


def load(data: DataArguments, names: Sequence[str], split: str) -> Feedback:
    """Everything in the named sets, merged."""
    return merge_feedback(*(load_feedback(name, **data.reading(split)) for name in names))


def read_feedback(data: DataArguments, config: RewardConfig) -> tuple[Feedback, Feedback, LeakageReport | None]:
    """Feedback that a reward model learns from, held-out feedback, and the leakage check of the one against the other.

    Raises:
        DataError: Nothing to learn from, faulty files, or an overlap where `fail_on_leak` is set.
    """
    train = load(data, data.dataset_name, data.dataset_train_split)
    logger.info("read %s", train.counts.summary())
    _refuse_useless(train, data, config)
    train, heldout = hold_out(data, train)
    _refuse_useless(train, data, config)
    logger.info("to learn from: %s; held out: %s", told(train), told(heldout))
    return train, heldout, check_leaks(data, train, heldout) if len(heldout) else None


def hold_out(data: DataArguments, train: Feedback) -> tuple[Feedback, Feedback]:
    """Split what was read into (training, held-out), or read the sets that the settings name as held out."""
    if data.eval_dataset_name:
        heldout = load(data, data.eval_dataset_name, data.dataset_test_split)
        logger.info("held out: read %s", heldout.counts.summary())
    elif data.eval_fraction > 0:
        train, heldout = split_by_prompt(train, data.eval_fraction, data.split_seed)
        heldout = replace(heldout, counts=ReadCounts())  # what the file left out is told once, with the training set
    else:
        heldout = Feedback()
    if data.max_comparisons is not None:
        train = replace(train, comparisons=train.comparisons[: data.max_comparisons])
    return train, heldout


def check_leaks(data: DataArguments, train: Feedback, heldout: Feedback) -> LeakageReport:
    """Tell how far the held-out feedback overlaps the training set.

    Raises:
        DataError: It does, and `fail_on_leak` is set.
    """
    report = leakage(train, heldout, data.leak_threshold)
    (logger.warning if report.found else logger.info)(report.summary())
    if report.found and data.fail_on_leak:
        raise DataError(
            f"The held-out feedback overlaps the training set ({report.summary()})",
            where=", ".join(data.eval_dataset_name or data.dataset_name),
            expected="no held-out prompt or response in the training set, as --fail_on_leak asks",
            remedy="remove the overlapping rows, raise --leak_threshold, or leave out --fail_on_leak",
        )
    return report


def told(feedback: Feedback) -> str:
    """`3 comparisons, 1 goal examples`, or `nothing`."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in feedback.sizes().items()) or "nothing"


def _refuse_useless(train: Feedback, data: DataArguments, config: RewardConfig) -> None:
    """Raise a DataError if no reward can be learned from the feedback with these settings."""
    where = ", ".join(data.dataset_name)
    words = bool(train.critiques) or any(c.chosen_critiques or c.rejected_critiques for c in train.comparisons)
    if config.critique_first and not (words and train.comparisons):
        raise DataError(
            f"critique_first needs comparisons and critiques, and there are {told(train)}"
            + ("" if words else ", none with a critique"),
            where=where,
            expected="critiques to learn to write, and comparisons to learn the reward from",
            remedy="add what is missing, or leave out --critique_first",
        )
    ratings = train.ratings and config.rating_weight > 0
    if not (train.comparisons or ratings or (train.critiques and config.learns_critiques)):
        raise DataError(
            f"There is nothing that a reward model learns from, only {told(train)}",
            where=where,
            expected="comparisons, ratings or critiques, with a weight above 0",
            remedy="add comparisons, ratings or critiques; demonstrations and corrections are read, but not trained on",
        )
    if config.critique_first and train.ratings:
        logger.warning("%d ratings are not used: critique_first learns from comparisons alone", len(train.ratings))
