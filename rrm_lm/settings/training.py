"""Settings of `rrm-lm reward`, `sft` and `policy` in addition to those of data, model and trainer."""

from __future__ import annotations

from dataclasses import dataclass

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, check_minimum, option, refuse_repeats
from rrm_lm.settings.models import EnsembleArguments
from rrm_lm.settings.permissions import CodeArguments

ALGORITHMS = ("ppo", "rloo")
FROM_CRITIQUES, AUTO, NONE = "critiques", "auto", "none"  # for --criteria
_OFF = ("none", "no", "off", "false")  # YAML reads `no`, `off` and `false` as False


@dataclass
class FolderArguments:
    """The output folder, and an earlier run in it."""

    overwrite_output_dir: bool = option(False, "Replace the results of an earlier run in output_dir.")
    allow_config_change: bool = option(
        False, "Resume although settings, data or models differ from that run's; the differences are reported."
    )


@dataclass
class RewardRunArguments(FolderArguments, CodeArguments):
    """What else `rrm-lm reward` does."""

    merge: bool = option(False, "Also write a plain sequence-classification checkpoint to OUTPUT_DIR/merged.")
    criteria: str | None = option(
        None,
        "Criteria that are added to the reward, with weights fitted to the comparisons: a file, `critiques` (those "
        "that the critiques of the training part name), `none`, or `auto`: `critiques` for at most 64 training "
        "comparisons, without ratings to learn or --merge. Unset: `auto`; in Python, `none`.",
    )

    def __post_init__(self) -> None:
        word = str(self.criteria).lower()
        if self.criteria is not None and word in (*_OFF, AUTO, FROM_CRITIQUES):
            self.criteria = NONE if word in _OFF else word


@dataclass
class RewardCommandArguments(RewardRunArguments):
    """What else the command `rrm-lm reward` does."""

    learning_curve: bool = option(
        False, "Also train on 25 and 50%% of the prompts, and say whether more feedback would help."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.criteria = self.criteria or AUTO


@dataclass
class SFTRunArguments(FolderArguments):
    """What else `rrm-lm sft` does."""

    merge: bool = option(False, "Also write a plain causal language model to OUTPUT_DIR/merged.")


@dataclass
class PolicyRunArguments(SFTRunArguments):
    """What else `rrm-lm policy` does."""

    algorithm: str = option("ppo", "ppo, or rloo (TRL's, without a value function; some settings are PPO's).")

    def __post_init__(self) -> None:
        check(self, ("algorithm", self.algorithm in ALGORITHMS, " or ".join(ALGORITHMS)))


@dataclass
class RewardArguments(EnsembleArguments):
    """Rewards of a policy. Several are summed, with reward_weights."""

    reward_model: list[str] = option(
        [],
        "One or more reward models: folders of rrm-lm reward (on the policy's backbone if it is theirs), any "
        "sequence-classification model, or a language model as a judge.",
    )
    reward_function: list[str] = option(
        [], "Functions as in TRL, f(prompts, completions, **kwargs) -> numbers: file.py:function or module:function."
    )
    value_model: str | None = option(
        None,
        "With value_function model: a sequence-classification model with one output that reads the policy's tokens. "
        "Unset: the policy's model with a new head.",
    )

    def require(self) -> None:
        names = [*self.reward_model, *self.reward_function]
        if not names:
            raise ConfigError(
                "There is no reward to train on",
                where="reward_model and reward_function",
                expected="one of them or both, one or more each",
                remedy="pass --reward_model outputs/reward, or --reward_function my_rewards.py:function",
            )
        refuse_repeats("reward_model and reward_function", names)


@dataclass
class MonitorArguments:
    """The over-optimization monitor: the optimized reward and an independent one, on held-out prompts."""

    gold: str | None = option(
        None, "Gold reward: file.py:function, module:function, or a file of a simulated user's requests."
    )
    monitor_reward_model: str | None = option(
        None, "If there is no gold reward: an independent reward model, trained on other feedback."
    )
    monitor_steps: int = option(10, "Updates between two measurements.")
    monitor_prompts: int = option(32, "Measure on this many held-out prompts, the first ones; 0 for no monitor.")
    stop_when_over_optimised: bool = option(
        False,
        "Stop when the gold reward has fallen below its best by more than its 95%% interval, and restore the best "
        "policy, which is kept in OUTPUT_DIR/best until then.",
    )

    def __post_init__(self) -> None:
        check_minimum(self, monitor_steps=1, monitor_prompts=0)
        if self.gold is not None and self.monitor_reward_model is not None:
            raise ConfigError(
                "Both gold and monitor_reward_model are set", where="gold", expected="one of them, gold if there is one"
            )

    @property
    def has_gold(self) -> bool:
        return self.gold is not None or self.monitor_reward_model is not None

    def require_gold(self, given: bool = False) -> None:
        """Raise a ConfigError if over-optimization stops the run and no reward shows it; `given`: one is loaded."""
        if self.stop_when_over_optimised and not (given or self.has_gold):
            what = "There is no independent reward that would show over-optimization"
            raise ConfigError(what, where="stop_when_over_optimised", expected="gold or monitor_reward_model")
