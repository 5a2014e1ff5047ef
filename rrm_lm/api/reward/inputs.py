"""The inputs of reward training: settings and feedback, their checks and their fingerprint."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, NamedTuple

from rrm_lm.api.data.heldout import files, sizes
from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.reward.config import RewardConfig
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.settings.data import DataArguments, FeedbackSplit
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import AUTO, NONE, RewardRunArguments
from rrm_lm.training.reward.config import RewardConfig as _TrainingConfig
from rrm_lm.training.reward.trainer import RewardDataset

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """Settings of a command in addition to the trainer's, and the current run."""

    # split, model, run_arguments: settings that `rrm_lm.RewardConfig` combines with the trainer's
    split: FeedbackSplit
    model: ModelArguments
    run_arguments: RewardRunArguments
    run: OutputRun | None = None  # holds the lock of the output folder and the settings to record


def settings_of(args: Any, name: str, peft_config: Any) -> Settings:
    """Settings of a Python call. If `args` has only the trainer's settings, the others keep their defaults."""
    if not isinstance(args, RewardConfig):
        return Settings(DataArguments(), ModelArguments(), RewardRunArguments())
    args.model_name_or_path = name
    for item in ("r", "lora_alpha", "lora_dropout", "target_modules") if peft_config is not None else ():
        value = getattr(peft_config, item)
        setattr(args, {"r": "lora_r", "target_modules": "lora_target_modules"}.get(item, item), _plain(value))
    return Settings(args, args, args)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value


def check_arguments(
    args: _TrainingConfig, run_arguments: RewardRunArguments, train_dataset: Any, collator: Any
) -> None:
    if train_dataset is None:
        raise ConfigError(
            "`train_dataset` is required", where="RewardTrainer", expected="rows, records, a file or a Hub name"
        )
    if collator is not None:
        raise ConfigError("`data_collator` cannot be set: the trainer builds its own batches", where="RewardTrainer")
    if run_arguments.merge and run_arguments.criteria not in (None, NONE, AUTO):
        raise ConfigError(
            "A merged checkpoint cannot hold criteria: other programs would read other rewards",
            where="merge and criteria",
            remedy="leave out --merge; rrm-lm score, evaluate, policy, compare and serve read the adapter's folder",
        )
    if run_arguments.merge and args.critique_first:
        raise ConfigError(
            "A merged checkpoint cannot write the critiques that its rewards are read after",
            where="merge and critique_first",
            remedy="leave out --merge; rrm-lm score and rrm-lm evaluate read the adapter directly",
        )


def refuse_useless(train: Feedback, config: Any) -> None:
    """Raise a DataError if no reward can be learned from the feedback with these settings."""
    where = files(train)
    words = bool(train.critiques) or any(c.chosen_critiques or c.rejected_critiques for c in train.comparisons)
    if config.critique_first and not (words and train.comparisons):
        raise DataError(
            f"critique_first needs comparisons and critiques, and there are {sizes(train)}"
            + ("" if words else ", none with a critique"),
            where=where,
            expected="critiques to learn to write, and comparisons to learn the reward from",
            remedy="add what is missing, or leave out --critique_first",
        )
    ratings = train.ratings and config.rating_weight > 0
    if not (train.comparisons or ratings or (train.critiques and config.learns_critiques)):
        raise DataError(
            f"There is nothing that a reward model learns from, only {sizes(train)}",
            where=where,
            expected="comparisons, ratings or critiques, with a weight above 0",
            remedy="add comparisons, ratings or critiques; demonstrations and corrections are read, but not trained on",
        )
    if config.critique_first and train.ratings:
        logger.warning("%d ratings are not used: critique_first learns from comparisons alone", len(train.ratings))


def fingerprint(feedback: Feedback, examples: RewardDataset) -> str:
    """A hash of the training data: 16 hexadecimal digits."""
    data: Any = feedback.records() if len(feedback) else (example.lines for example in examples)
    digest = hashlib.sha256()
    for record in data:
        digest.update(repr(record).encode())
    return digest.hexdigest()[:16]
