"""Settings of reward-model training: Hugging Face's TrainingArguments, and what is ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from transformers import TrainingArguments

from rrm_lm.errors import ConfigError
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.training.one_device import OneDevice
from rrm_lm.training.recomputing import Recomputing

logger = logging.getLogger(__name__)

GRADE_USES = ("none", "margin", "target", "weight")
CRITIQUE_VIEWS = ("reward", "all")
# Settings of Hugging Face's that would fail or do nothing, and what is done instead.
_NOT_HERE = {
    "neftune_noise_alpha": "embeddings without noise, as rewards are read from them",
    "use_liger_kernel": "layers as transformers has them; what is fused here is fused where it is exact",
}


@dataclass
class RewardConfig(OneDevice, Recomputing, TrainingArguments):
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
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: feedback has no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter takes part in every pass."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Not needed: buffers are constants, the same on all processes."}
    )
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Not used: batches are laid out in the step."})

    # What is ours.
    allow_world_size_change: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint of another number of processes, at the same place in the data."},
    )
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
        if self.grades not in GRADE_USES:
            raise ConfigError(f"grades is {self.grades!r}", where="grades", expected="one of " + ", ".join(GRADE_USES))
        if self.critique_view not in CRITIQUE_VIEWS:
            raise ConfigError(
                f"critique_view is {self.critique_view!r}", where="critique_view", expected="reward or all"
            )
        for name, reason in _NOT_HERE.items():
            if getattr(self, name):
                raise ConfigError(f"{name} cannot be used here", where=name, expected=reason, remedy="leave it out")
        if getattr(self, "train_sampling_strategy", "random") not in ("random", "sequential"):
            raise ConfigError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}",
                where="train_sampling_strategy",
                expected="random or sequential; inside a step, lengths are grouped anyway (micro_batch_tokens)",
            )
        for name in ("critique_weight", "rating_weight", "critique_weight_end", "center_rewards_coefficient"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}", where=name, expected="0 or more")
        for name in ("micro_batch_tokens", "critique_samples", "max_critique_length", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", where=name, expected="at least 1")
        Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)  # refuses what is none
        if self.ensemble_heads > 1 and not self.center_rewards_coefficient:
            logger.warning("without center_rewards_coefficient the members' rewards may differ by constants")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}", where="seed", expected="at least 0 and below 2^32")
        if self.grade_scale <= 0:
            raise ConfigError(f"grade_scale is {self.grade_scale}", where="grade_scale", expected="above 0")
        if not 0 <= self.label_smoothing_factor < 0.5:
            raise ConfigError(
                f"label_smoothing_factor is {self.label_smoothing_factor}",
                where="label_smoothing_factor",
                expected="at least 0 and below 0.5: the share of labels believed to be flipped",
            )

    @property
    def learns_critiques(self) -> bool:
        """Whether writing critiques is trained at any point."""
        return self.critique_weight > 0 or bool(self.critique_weight_end) or self.critique_first
