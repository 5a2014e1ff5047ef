"""What is held out of training, and whether it overlaps what is learned from."""

from __future__ import annotations

import logging
from dataclasses import replace

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import ReadCounts
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.splits import LeakageReport, leakage, split_by_prompt
from rrm_lm.settings.shared import DataArguments

logger = logging.getLogger(__name__)


def hold_out(data: DataArguments, train: Feedback) -> tuple[Feedback, Feedback]:
    """Split what was read into (training, held-out), or read the sets that the settings name as held out."""
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
