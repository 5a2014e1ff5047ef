"""The criteria of a reward model that is trained: read, checked against what is held out, and fitted."""

from __future__ import annotations

import logging
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward
from rrm_lm.feedback.criteria.finding import Findings, find_criteria
from rrm_lm.feedback.criteria.records import Criterion, read_criteria
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.models.reward import RewardModel
from rrm_lm.settings.training import AUTO, FROM_CRITIQUES, NONE, RewardRunArguments
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

# Comparisons. Criteria raise the accuracy of a LoRA reward with 16 (scripts/bench/results/words_lora.json); that of a
# linear reward they raise with 32, and with 256 for one set of three (words.json).
FEW = 64


def fitted_criteria(
    args: RewardRunArguments, train: Feedback, model: RewardModel, chat: ChatFormat
) -> CriteriaReward | None:
    """The criteria that the settings name, with weights fitted to the training comparisons; None without any."""
    if args.criteria in (None, NONE):
        return None
    if args.criteria == AUTO:
        few = 0 < len(train.comparisons) <= FEW
        criteria = _detected(find_criteria(train.records())) if few else []
        if criteria and args.merge:
            logger.info("the critiques name criteria, which a merged checkpoint cannot hold: the LoRA reward alone")
        if args.merge or not criteria:
            return None
        logger.info(
            "the critiques name criteria, and there are few comparisons (--criteria none: the LoRA reward alone)"
        )
    elif args.criteria == FROM_CRITIQUES:
        criteria = _found(train)
    else:
        criteria = read_criteria(args.criteria)
        _warn_held_out(criteria, train)
    reward = CriteriaReward(criteria, model.backbone, chat, allow_code=args.allow_code)
    logger.info("%d criteria, and their weights after %d comparisons:", len(criteria), len(train.comparisons))
    reward.fit(train.comparisons)
    logger.info("they are added to the LoRA reward; other programs that load the adapter read only that part")
    return reward


def _found(train: Feedback) -> list[Criterion]:
    criteria = _detected(find_criteria(train.records()))
    if not criteria:
        raise DataError(
            "The critiques of the training part name no criterion that a detector measures",
            where="criteria: critiques",
            expected="critiques in English about the responses",
            remedy="look at rrm-lm criteria --dataset FILE, or write a criteria.yaml by hand",
        )
    return criteria


def _detected(found: Findings) -> list[Criterion]:
    """What critiques name and a detector measures. A small model's answers to questions are hardly better than chance,
    and take a pass of the model for every response.
    """
    asked = [one for one in found.criteria if one.question]
    if asked:
        what = ", ".join(f"{one.name} ({one.named} clauses)" for one in asked)
        remedy = "to ask the model, write them to a file with rrm-lm criteria --output and pass it as --criteria"
        logger.info("criteria that only a question to the model would measure are left out: %s; %s", what, remedy)
    return [one for one in found.criteria if not one.question]


def _warn_held_out(criteria: list[Criterion], train: Feedback) -> None:
    """Words about responses that are held out would make the evaluation optimistic."""
    trained = {str(record.origin) for record in train.records()}
    files = {str(record.origin.file) for record in train.records()}
    quoted: list[Any] = [one.where for criterion in criteria for one in criterion.quotations]
    seen = [where for where in quoted if where.rpartition(", row ")[0] in files and where not in trained]
    if seen:
        message = "the criteria quote rows that are held out, the first being %s, so results on them are optimistic"
        logger.warning(message + "; --criteria critiques reads only what is trained on", seen[0])
