"""Settings of reward-model training: Hugging Face's TrainingArguments, and what is ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from transformers import TrainingArguments

from rrm_lm.errors import ConfigError
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.training.arguments import (
    NO_LIGER,
    TrainerArguments,
    check_at_least,
    check_choice,
    check_positive,
    check_seed_and_smoothing,
    refuse_settings,
)

logger = logging.getLogger(__name__)

GRADE_USES = ("none", "margin", "target", "weight")
CRITIQUE_VIEWS = ("reward", "all")
# Settings of Hugging Face's that would fail or do nothing, and what is done instead.
_NOT_HERE = {
    "neftune_noise_alpha": "embeddings without noise, as rewards are read from them",
    **NO_LIGER,
}


@dataclass
class RewardConfig(TrainerArguments, TrainingArguments):
    """How a reward model is trained. Names are TRL's and Hugging Face's wherever they have one."""

    # Defaults that differ from TrainingArguments.
    output_dir: str | None = field(default="outputs/reward", metadata={"help": "Where the model and results go."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of the adapter and the head."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Pieces of feedback per step and process; micro-batches are made by tokens."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the feedback."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps, or their share of all steps below 1."})
    logging_steps: float = field(default=5, metadata={"help": "Log every this many steps."})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Not needed: buffers are constants, the same on all processes."}
    )
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Not used: batches are laid out in the step."})

    # What is ours.
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest prompt plus response in tokens; longer ones lose their oldest turns."}
    )
    max_critique_length: int = field(default=96, metadata={"help": "Longest critique in tokens; the rest is cut."})
    micro_batch_tokens: int = field(
        default=2048, metadata={"help": "Most padded tokens that go through the model at once; bounds the memory."}
    )
    share_prefixes: bool = field(
        default=True, metadata={"help": "Compute what lines have in common once, where that is exact."}
    )
    critique_weight: float = field(
        default=0.5, metadata={"help": "Weight of learning to write the critiques; 0 ignores them."}
    )
    critique_weight_end: float | None = field(
        default=None, metadata={"help": "Weight at the end of training, reached linearly; unset keeps it constant."}
    )
    critique_view: str = field(
        default="reward",
        metadata={
            "help": "What a critique sees while it is learned: reward (only the token at which the reward is read, so "
            "that the words must pass through it) or all."
        },
    )
    rating_weight: float = field(default=1.0, metadata={"help": "Weight of rating regression; 0 ignores ratings."})
    pair_ratings: bool = field(default=False, metadata={"help": "Also regress on ratings that stand beside a pair."})
    center_rewards_coefficient: float | None = field(
        default=0.01, metadata={"help": "Weight of the squared sum of a pair's rewards, which centres them."}
    )
    grades: str = field(
        default="none",
        metadata={"help": "Graded preferences: none, margin (required distance), target (soft label) or weight."},
    )
    grade_scale: float = field(default=1.0, metadata={"help": "Grades are divided by this first."})
    critique_first: bool = field(
        default=False, metadata={"help": "Write a critique first and read the reward after it (arXiv 2408.11791)."}
    )
    critic_epochs: float = field(
        default=2.0, metadata={"help": "With critique_first: passes over people's critiques before the model's own."}
    )
    critique_samples: int = field(default=1, metadata={"help": "With critique_first: own critiques for each response."})
    critique_temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of own critiques."})

    ensemble_heads: int = field(
        default=1,
        metadata={"help": "Members of a reward ensemble: heads on one adapter, each trained on prompts of its own."},
    )
    ensemble: str = field(
        default="mean", metadata={"help": "With ensemble_heads: how members are combined: mean, min or mean_minus_std."}
    )
    ensemble_k: float = field(
        default=1.0, metadata={"help": "With mean_minus_std: standard deviations that are taken off the mean."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "grades", GRADE_USES)
        check_choice(self, "critique_view", CRITIQUE_VIEWS)
        refuse_settings(self, _NOT_HERE)
        if getattr(self, "train_sampling_strategy", "random") not in ("random", "sequential"):
            raise ConfigError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}",
                where="train_sampling_strategy",
                expected="random or sequential; within a step, lengths are grouped anyway (micro_batch_tokens)",
            )
        check_at_least(self, 0, "critique_weight", "rating_weight", "critique_weight_end", "center_rewards_coefficient")
        check_at_least(self, 1, "micro_batch_tokens", "critique_samples", "max_critique_length", "max_length")
        check_positive(self, "grade_scale")
        check_seed_and_smoothing(self)
        Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)  # checks these settings
        if self.ensemble_heads > 1 and not self.center_rewards_coefficient:
            logger.warning("without center_rewards_coefficient the members' rewards may differ by constants")

    @property
    def learns_critiques(self) -> bool:
        """Whether writing critiques is trained at any point."""
        return self.critique_weight > 0 or bool(self.critique_weight_end) or self.critique_first
