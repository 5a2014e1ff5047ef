"""The trainer settings that `rrm-lm policy` offers: those that have an effect in a command."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.settings.models import ModelArguments
from rrm_lm.training.ppo.config import PPOConfig


@dataclass
class StartArguments(ModelArguments):
    """What the policy starts from, and its LoRA adapter."""

    model_name_or_path: str | None = field(
        default="smollm2-135m",
        metadata={
            "help": "A model (a Hub id, a folder, or smollm2-135m, embedded), or a policy: an adapter folder as rrm-lm "
            "sft or this command wrote it, which is trained on."
        },
    )


@dataclass
class PolicyConfig(PPOConfig):
    """How a policy is trained. Names are TRL's and Hugging Face's wherever they have one."""

    max_steps: int = field(default=-1, metadata={"help": "Updates in all; -1: as many as total_episodes needs."})
    total_episodes: int | None = field(
        default=None, metadata={"help": "Episodes in all; unset: num_train_epochs passes over the prompts."}
    )
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the prompts, where neither of those says how long."}
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Episodes of an update on each process (with gradient_accumulation_steps 1)."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "How many times each episode is learned from."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in each pass over the episodes."})
    response_length: int = field(default=53, metadata={"help": "Most tokens of a response."})
    temperature: float = field(default=0.7, metadata={"help": "Temperature that responses are drawn at."})
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Taken off the reward of a response that does not end; unset: nothing."},
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "What a nat of KL divergence to the reference costs, in reward."}
    )
    save_steps: float = field(default=10, metadata={"help": "Updates between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept; unset: all."})
    num_sample_generations: int = field(
        default=0, metadata={"help": "Not used: held-out answers are measured every monitor_steps updates."}
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of the rewards: of each reward_model, then each reward_function; unset: 1 each."},
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
