"""Settings of reward-model training: Hugging Face's TrainingArguments and our additions."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import TrainingArguments

from rrm_lm.errors import ConfigError
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.options import check, check_minimum, option
from rrm_lm.training.arguments import NO_LIGER, FeedbackArguments, check_above_zero, check_choice, refuse_settings

logger = logging.getLogger(__name__)

GRADE_USES = ("none", "margin", "target", "weight")
CRITIQUE_VIEWS = ("reward", "all")
# Hugging Face settings that would fail or have no effect, and what to use instead.
_NOT_HERE = {
    "neftune_noise_alpha": "embeddings without noise, as rewards are read from them",
    **NO_LIGER,
}


@dataclass
class RewardConfig(FeedbackArguments, TrainingArguments):
    """Reward-model training settings. Names are those of TRL and Hugging Face where they have one."""

    # Defaults that differ from TrainingArguments.
    output_dir: str | None = option("outputs/reward", "Where the model and results go.")
    per_device_train_batch_size: int = option(
        8, "Pieces of feedback per step and process; micro-batches are made by tokens."
    )
    ddp_broadcast_buffers: bool | None = option(False, "Not needed: buffers are constants, the same on all processes.")
    dataloader_pin_memory: bool = option(False, "Not used: batches are made during the step.")

    # Settings that Hugging Face does not have.
    max_critique_length: int = option(96, "Longest critique in tokens; the rest is cut.")
    micro_batch_tokens: int = option(
        None, "Most padded tokens that go through the model at once; unset: 2048, or what fits on the GPU."
    )
    comparisons_together: int = option(
        1,
        "Most comparisons of one prompt that are one piece of feedback, so that the prompt and repeated responses are "
        "computed once (arXiv 2203.02155, section 3.5).",
    )
    prompts_together: int = option(
        1,
        "Most prompts with the same beginning, such as questions on one text, that are one piece of feedback, so that "
        "the beginning is computed once.",
    )
    share_prefixes: bool = option(True, "Compute shared prefixes once, where that is exact.")
    critique_weight: float = option(0.5, "Weight of learning to write the critiques; 0: none.")
    critique_weight_end: float | None = option(
        None, "Weight at the end of training, reached linearly; unset keeps it constant."
    )
    critique_view: str = option(
        "reward",
        "What a critique sees while it is learned: reward (only the token at which the reward is read, so that "
        "the words must pass through it) or all.",
    )
    sft_weight: float = option(
        0.0, "Weight of learning to write the chosen responses as well (arXiv 2406.10216); 0 for none."
    )
    rating_weight: float = option(1.0, "Weight of rating regression; 0 ignores ratings.")
    pair_ratings: bool = option(False, "Also regress on the ratings of compared responses.")
    center_rewards_coefficient: float | None = option(
        0.01, "Weight of the squared sum of a pair's rewards, which centers them."
    )
    grades: str = option("none", "Graded preferences: none, margin (required distance), target (soft label) or weight.")
    grade_scale: float = option(1.0, "Grades are divided by this first.")
    critique_first: bool = option(False, "Write a critique first and read the reward after it (arXiv 2408.11791).")
    critic_epochs: float = option(2.0, "With critique_first: passes over people's critiques before the model's own.")
    critique_samples: int = option(1, "With critique_first: own critiques for each response.")
    critique_temperature: float = option(0.7, "Sampling temperature of own critiques.")

    ensemble_heads: int = option(
        1, "Members of a reward ensemble: heads on one adapter, each trained on prompts of its own."
    )
    ensemble: str = option("mean", "With ensemble_heads: how to combine members: mean, min or mean_minus_std.")
    ensemble_k: float = option(1.0, "With mean_minus_std: how many standard deviations to subtract from the mean.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "grades", GRADE_USES)
        check_choice(self, "critique_view", CRITIQUE_VIEWS)
        refuse_settings(self, _NOT_HERE)
        is_known = getattr(self, "train_sampling_strategy", "random") in ("random", "sequential")
        by_length = "random or sequential; within a step, lengths are grouped anyway (micro_batch_tokens)"
        check(self, ("train_sampling_strategy", is_known, by_length))
        check_minimum(self, critique_weight=0, critique_weight_end=0, rating_weight=0, center_rewards_coefficient=0)
        check_minimum(self, sft_weight=0)
        check_minimum(self, critique_samples=1, max_critique_length=1, comparisons_together=1, prompts_together=1)
        check_above_zero(self, "grade_scale")
        if self.critique_first and self.sft_weight:
            what = "sft_weight would also learn the model's own critiques, which stand between response and reward"
            raise ConfigError(what, where="sft_weight", remedy="leave out sft_weight or critique_first")
        Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)  # validates these settings
        if self.ensemble_heads > 1 and not self.center_rewards_coefficient:
            logger.warning("without center_rewards_coefficient the members' rewards may differ by constants")

    @property
    def learns_critiques(self) -> bool:
        return self.critique_weight > 0 or bool(self.critique_weight_end) or self.critique_first
