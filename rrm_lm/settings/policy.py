"""Settings of `rrm-lm policy`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.settings.shared import FolderArguments

ALGORITHMS = ("ppo", "rloo")


@dataclass
class PromptArguments(ReadLimits):
    """What the policy learns to answer, and what is held out."""

    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts to learn on: any feedback, or JSON lines with `prompt`; files, folders, Hub sets."},
    )
    eval_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Held-out prompts to watch over-optimisation on; unset holds out eval_fraction of prompts."},
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of prompts held out without eval_prompts; 0 for none, and no monitor."}
    )
    split_seed: int = field(default=0, metadata={"help": "Which prompts are held out."})
    max_prompts: int | None = field(default=None, metadata={"help": "Learn on only the first so many prompts."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt plus response in tokens; longer prompts lose their oldest turns, then their "
            "beginning. Unset: as long as the model can, and a longer prompt is an error."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of prompts."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split of eval_prompts."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Column names, as theirs=ours, for shapes that are not recognised."}
    )
    skip_bad_rows: bool | None = field(
        default=None, metadata={"help": "Go on after faulty rows; unset: only in Hub sets; a local file's stop it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, right, expected in (
            ("eval_fraction", 0 <= self.eval_fraction < 1, "at least 0 (nothing is held out) and below 1"),
            ("max_prompts", self.max_prompts is None or self.max_prompts >= 1, "at least 1"),
            ("max_length", self.max_length is None or self.max_length >= 2, "at least 2"),
        ):
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=expected)


@dataclass
class RewardArguments:
    """What is rewarded. Several rewards are summed, with reward_weights."""

    reward_model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward models, one or more: folders that rrm-lm reward wrote (on the policy's own backbone, where "
            "that is theirs, too), any sequence-classification model, or a language model as a judge."
        },
    )
    reward_function: list[str] = field(
        default_factory=list,
        metadata={"help": "Functions f(prompts, responses) -> numbers: file.py:function or module:function."},
    )
    ensemble: str | None = field(
        default=None,
        metadata={"help": "Reward ensembles: mean, min or mean_minus_std of the members; unset: as trained."},
    )
    ensemble_k: float | None = field(
        default=None,
        metadata={"help": "With mean_minus_std: standard deviations that are taken off; unset: as trained."},
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "With value_function model: a sequence-classification model with one output that reads the "
            "policy's tokens; unset: the policy's model with a new head."
        },
    )

    def require(self) -> None:
        """Raise a ConfigError if there is no reward, or one is given twice."""
        names = [*self.reward_model, *self.reward_function]
        if not names:
            raise ConfigError(
                "There is no reward to train on",
                where="reward_model and reward_function",
                expected="one of them or both, one or more each",
                remedy="pass --reward_model outputs/reward, or --reward_function my_rewards.py:function",
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{twice[0]} is given twice", where="reward_model and reward_function", expected="once")


@dataclass
class MonitorArguments:
    """The over-optimisation monitor: the reward that is optimised, and another one, on held-out prompts."""

    gold: str | None = field(
        default=None,
        metadata={"help": "Gold reward: file.py:function, module:function, or a file of a simulated user's requests."},
    )
    monitor_reward_model: str | None = field(
        default=None,
        metadata={"help": "Where there is no gold: an independent reward model, trained on other feedback."},
    )
    monitor_steps: int = field(default=10, metadata={"help": "Updates between two measurements."})
    monitor_prompts: int = field(
        default=32, metadata={"help": "Measure on the first so many held-out prompts; 0 for no monitor."}
    )
    stop_when_over_optimised: bool = field(
        default=False,
        metadata={
            "help": "End training when gold reward has fallen below its best by more than its 95%% interval, and "
            "put back the policy that was best, which is kept in OUTPUT_DIR/best meanwhile."
        },
    )

    def __post_init__(self) -> None:
        for name, least in (("monitor_steps", 1), ("monitor_prompts", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=f"at least {least}")
        if self.gold is not None and self.monitor_reward_model is not None:
            raise ConfigError(
                "Both gold and monitor_reward_model are set", where="gold", expected="one of them, gold if there is"
            )
        if self.stop_when_over_optimised and not self.has_gold:
            raise ConfigError(
                "Nothing says when the policy is over-optimised",
                where="stop_when_over_optimised",
                expected="gold or monitor_reward_model",
            )

    @property
    def has_gold(self) -> bool:
        """Whether there is a reward that is not optimised."""
        return self.gold is not None or self.monitor_reward_model is not None


@dataclass
class PolicyRunArguments(FolderArguments):
    """What else `rrm-lm policy` does."""

    algorithm: str = field(
        default="ppo", metadata={"help": "ppo, or rloo (TRL's, without a value function; some settings are PPO's)."}
    )
    merge: bool = field(
        default=False, metadata={"help": "Also write a plain causal language model to OUTPUT_DIR/merged."}
    )

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"algorithm is {self.algorithm!r}", where="algorithm", expected=" or ".join(ALGORITHMS))
