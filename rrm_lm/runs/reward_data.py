"""Which feedback `rrm-lm reward` learns from and which it holds out, and whether the two overlap."""

from __future__ import annotations

import logging
from dataclasses import replace

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import ReadCounts
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.splits import LeakageReport, leakage, split_by_prompt
from rrm_lm.settings.shared import DataArguments
from rrm_lm.training.reward.config import RewardConfig

logger = logging.getLogger(__name__)


def read_feedback(data: DataArguments, config: RewardConfig) -> tuple[Feedback, Feedback, LeakageReport | None]:
    """Feedback to learn from, held-out feedback, and the leakage check of the one against the other.

    Raises:
        DataError: Nothing to learn from, faulty files, or an overlap where `fail_on_leak` is set.
    """
    train = data.load(data.dataset_name, data.dataset_train_split)
    logger.info("read %s", train.counts.summary())
    _refuse_useless(train, data, config)
    if data.eval_dataset_name:
        heldout = data.load(data.eval_dataset_name, data.dataset_test_split)
        logger.info("held out: read %s", heldout.counts.summary())
    elif data.eval_fraction > 0:
        train, heldout = split_by_prompt(train, data.eval_fraction, data.split_seed)
        heldout = replace(heldout, counts=ReadCounts())  # what the file left out is told once, with the training set
    else:
        heldout = Feedback()
    if data.max_comparisons is not None:
        train = replace(train, comparisons=train.comparisons[: data.max_comparisons])
    _refuse_useless(train, data, config)
    logger.info("to learn from: %s; held out: %s", _told(train), _told(heldout))
    return train, heldout, _check_leaks(train, heldout, data) if len(heldout) else None


def _refuse_useless(train: Feedback, data: DataArguments, config: RewardConfig) -> None:
    """Raise a DataError if no reward can be learned from the feedback with these settings."""
    where = ", ".join(data.dataset_name)
    words = bool(train.critiques) or any(c.chosen_critiques or c.rejected_critiques for c in train.comparisons)
    if config.critique_first and not (words and train.comparisons):
        raise DataError(
            f"critique_first needs comparisons and critiques, and there are {_told(train)}"
            + ("" if words else ", none with a critique"),
            where=where,
            expected="critiques to learn to write, and comparisons to learn the reward from",
            remedy="add what is missing, or leave out --critique_first",
        )
    ratings = train.ratings and config.rating_weight > 0
    if not (train.comparisons or ratings or (train.critiques and config.learns_critiques)):
        raise DataError(
            f"There is nothing that a reward model learns from, only {_told(train)}",
            where=where,
            expected="comparisons, ratings or critiques, with a weight above 0",
            remedy="add comparisons, ratings or critiques; demonstrations and corrections are read, but not trained on",
        )
    if config.critique_first and train.ratings:
        logger.warning("%d ratings are not used: critique_first learns from comparisons alone", len(train.ratings))


def _check_leaks(train: Feedback, heldout: Feedback, data: DataArguments) -> LeakageReport:
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


def _told(feedback: Feedback) -> str:
    """`3 comparisons, 1 goal examples`, or `nothing`."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in feedback.sizes().items()) or "nothing"
