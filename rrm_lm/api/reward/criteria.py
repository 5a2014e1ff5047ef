"""The criteria of a reward model that is trained: read, checked against what is held out, and fitted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward
from rrm_lm.feedback.criteria.finding import find_criteria
from rrm_lm.feedback.criteria.records import Criterion, read_criteria
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.models.reward import RewardModel
from rrm_lm.settings.training import AUTO, FROM_CRITIQUES, NONE, RewardRunArguments
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.losses import used_grades

logger = logging.getLogger(__name__)

# Comparisons. Criteria raise the accuracy of a LoRA reward with 16 (scripts/bench/results/words_lora.json); that of a
# linear reward they raise with 32, and with 256 for one set of three (words.json).
FEW = 64


def fitted_criteria(
    run: RewardRunArguments, args: RewardConfig, train: Feedback, model: RewardModel, chat: ChatFormat
) -> CriteriaReward | None:
    """The criteria that the settings name, with weights fitted to the training comparisons; None without any."""
    if run.criteria == AUTO:
        criteria = _by_default(run, args, train)
    elif run.criteria == FROM_CRITIQUES:
        criteria = _found(train)
    elif run.criteria in (None, NONE):
        return None
    else:
        criteria = _of_file(run.criteria, train)
    if not criteria:
        return None
    reward = CriteriaReward(criteria, model.backbone, chat, allow_code=run.allow_code)
    comparisons = train.comparisons
    logger.info("criteria, with their weights after %d comparisons:", len(comparisons))
    reward.fit(comparisons, used_grades([one.margin for one in comparisons], args), args.label_smoothing_factor)
    if not reward.criteria:
        logger.warning("no criterion is left, so the LoRA reward is the whole reward")
        return None
    what = "they are added to the LoRA reward; programs that load the adapter with PEFT read only that part, as do the "
    logger.info(what + "metrics during the training")
    return reward


def _by_default(run: RewardRunArguments, args: RewardConfig, train: Feedback) -> list[Criterion]:
    """Those that the critiques name, if there are few comparisons and nothing speaks against criteria."""
    criteria = named_criteria(train) if 0 < len(train.comparisons) <= FEW else []
    against = ""
    if run.merge:
        against = "a merged checkpoint cannot hold them"
    elif (train.ratings and args.rating_weight > 0) or args.pair_ratings:
        against = "ratings fix the scale of the reward, which they would shift"
    if criteria and against:
        logger.info("the critiques name criteria; %s, so the LoRA reward is the whole reward", against)
    elif criteria:
        what = "the critiques name criteria, and there are few comparisons (--criteria none: the LoRA reward alone)"
        logger.info(what)
    return [] if against else criteria


def _of_file(name: str, train: Feedback) -> list[Criterion]:
    if not Path(name).expanduser().is_file():
        expected = f"a file, or {FROM_CRITIQUES}, {AUTO} or {NONE}"
        raise ConfigError(f"There is no file {name!r}", where="criteria", expected=expected)
    criteria = read_criteria(name)
    _warn_held_out(criteria, train)
    if any(one.low is not None for one in criteria):
        what = "%s has weights that were fitted before; if to the same comparisons, these now count twice"
        logger.warning(what, name)
    return criteria


def _found(train: Feedback) -> list[Criterion]:
    criteria = named_criteria(train)
    if not criteria:
        raise DataError(
            "The critiques of the training part name no criterion that a detector measures",
            where="criteria: critiques",
            expected="critiques in English about the responses",
            remedy="look at rrm-lm criteria --dataset FILE, or write a criteria.yaml by hand",
        )
    return criteria


def named_criteria(train: Feedback) -> list[Criterion]:
    """What critiques name and a detector measures. A small model's answers to questions are hardly better than chance,
    and take a pass of the model for every response.
    """
    found = find_criteria(train.records()).criteria
    asked = [one for one in found if one.question]
    if asked:
        what = ", ".join(f"{one.name} ({one.named} clauses)" for one in asked)
        remedy = "to ask the model, write them to a file with rrm-lm criteria --output and pass it as --criteria"
        logger.info("criteria that only a question to the model would measure are left out: %s; %s", what, remedy)
    return [one for one in found if not one.question]


def _warn_held_out(criteria: list[Criterion], train: Feedback) -> None:
    """Words about responses that are held out would make the evaluation optimistic."""
    trained = {str(record.origin) for record in train.records()}
    files = {str(record.origin.file) for record in train.records()}
    quoted: list[Any] = [one.where for criterion in criteria for one in criterion.quotations]
    seen = [where for where in quoted if where.rpartition(", row ")[0] in files and where not in trained]
    if seen:
        message = "the criteria quote rows that are held out, the first being %s, so results on them are optimistic"
        logger.warning(message + "; --criteria critiques reads only what is trained on", seen[0])
