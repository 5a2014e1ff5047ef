"""The trainer settings that `rrm-lm policy` offers: those that have an effect in a command."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.options import option
from rrm_lm.settings.models import ModelArguments
from rrm_lm.training.ppo.config import PPOConfig


@dataclass
class StartArguments(ModelArguments):
    """What the policy starts from, and its LoRA adapter."""

    model_name_or_path: str | None = option(
        "smollm2-135m",
        "A model (a Hub id, a folder, or smollm2-135m, embedded), or a policy: an adapter folder as rrm-lm "
        "sft or this command wrote it, which is trained on.",
    )


@dataclass
class PolicyConfig(PPOConfig):
    """How a policy is trained. Names are TRL's and Hugging Face's wherever they have one."""

    max_steps: int = option(-1, "Updates in all; -1: as many as total_episodes needs.")
    total_episodes: int | None = option(None, "Episodes in all; unset: num_train_epochs passes over the prompts.")
    num_train_epochs: float = option(1.0, "Passes over the prompts, where neither of those says how long.")
    per_device_train_batch_size: int = option(
        8, "Episodes of an update on each process (with gradient_accumulation_steps 1)."
    )
    num_ppo_epochs: int = option(4, "How many times each episode is learned from.")
    num_mini_batches: int = option(1, "Optimizer steps in each pass over the episodes.")
    response_length: int = option(53, "Most tokens of a response.")
    temperature: float = option(0.7, "Temperature that responses are drawn at.")
    missing_eos_penalty: float | None = option(
        None, "Taken off the reward of a response that does not end; unset: nothing."
    )
    kl_coef: float = option(0.05, "What a nat of KL divergence to the reference costs, in reward.")
    save_steps: float = option(10, "Updates between two checkpoints.")
    save_total_limit: int | None = option(2, "Checkpoints that are kept; unset: all.")
    num_sample_generations: int = option(0, "Not used: held-out answers are measured every monitor_steps updates.")
    reward_weights: list[float] | None = option(
        None, "Weights of the rewards: of each reward_model, then each reward_function; unset: 1 each."
    )

    # Derived from other settings, controlled by another setting of this command, or without effect here.
    model_adapter_name: str | None = field(default=None, init=False)
    ref_adapter_name: str | None = field(default=None, init=False)
    sft_model_path: str = field(default="", init=False)
    reward_model_path: str = field(default="", init=False)
    dataset_num_proc: int | None = field(default=None, init=False)
    local_rollout_forward_batch_size: int = field(default=64, init=False)
    world_size: int | None = field(default=None, init=False)
    num_total_batches: int | None = field(default=None, init=False)
    micro_batch_size: int | None = field(default=None, init=False)
    local_batch_size: int | None = field(default=None, init=False)
    batch_size: int | None = field(default=None, init=False)
    local_mini_batch_size: int | None = field(default=None, init=False)
    mini_batch_size: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no":
            what = f"eval_strategy is {getattr(self.eval_strategy, 'value', self.eval_strategy)}"
            expected = "nothing: held-out prompts are measured every monitor_steps updates"
            raise ConfigError(what, where="eval_strategy", expected=expected, remedy="leave it out")
