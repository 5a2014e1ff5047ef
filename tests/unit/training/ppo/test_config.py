"""Settings: which are refused, which follow from others, and TRL's taken over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl.experimental.ppo import PPOConfig as TrlConfig

from rrm_lm.errors import ConfigError
from rrm_lm.training.ppo.config import PPOConfig
from tests.deprecations import trls_arguments
from tests.tiny_policy import config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl_estimator", "k2"),
        ("kl_control", "loose"),
        ("value_function", "table"),
        ("reference", "never"),
        ("stop_token", "dot"),
        ("samples_per_prompt", 0),
        ("micro_batch_tokens", 0),
        ("response_length", 0),
        ("num_ppo_epochs", 0),
        ("kl_coef", -0.1),
        ("temperature", 0.0),
        ("max_kl", 0.0),
        ("gamma", 1.5),
        ("lam", -0.1),
        ("kl_target", float("nan")),
        ("rollouts", "theirs"),
        ("max_rollout_mismatch", 0.0),
        ("rollout_importance_cap", -1.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name):
        config(tmp_path, **{name: value})


def test_two_stop_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stop_token"):
        config(tmp_path, stop_token="eos", stop_token_id=3)


@pytest.mark.parametrize("name", ["num_mini_batches", "samples_per_prompt"])
def test_sizes_that_do_not_divide(name: str, tmp_path: Path) -> None:
    args = config(tmp_path, **{name: 3})
    with pytest.raises(ConfigError, match=f"4 episodes a process cannot be divided by 3.*{name}"):
        args.count_batches(1, 10)


def test_sizes_that_follow(tmp_path: Path) -> None:
    args = config(tmp_path, max_steps=-1, num_train_epochs=2.0, gradient_accumulation_steps=2, num_mini_batches=2)
    args.count_batches(3, 10)
    assert (args.world_size, args.local_batch_size, args.batch_size, args.micro_batch_size) == (3, 8, 24, 12)
    assert (args.mini_batch_size, args.local_mini_batch_size) == (12, 4)
    assert (args.total_episodes, args.num_total_batches) == (20, 1)
    args = config(tmp_path, max_steps=-1, total_episodes=25)
    args.count_batches(1, 10)
    assert args.num_total_batches == 7  # the last one is whole, as in TRL
    args = config(tmp_path, max_steps=5)
    args.count_batches(1, 10)
    assert (args.total_episodes, args.num_total_batches) == (20, 5)


@trls_arguments
def test_trls_settings_mean_trls_conventions(tmp_path: Path) -> None:
    theirs = TrlConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", kl_coef=0.3, num_ppo_epochs=3, learning_rate=1e-5
    )
    args = PPOConfig.from_trl(theirs)
    assert args.trl_compatible and args.max_kl is None
    assert (args.kl_coef, args.num_ppo_epochs, args.learning_rate, args.output_dir) == (0.3, 3, 1e-5, str(tmp_path))
    assert not args.bf16 and not args.activation_checkpointing and not args.gradient_checkpointing


@trls_arguments
def test_defaults_are_trls_but_for_those_that_say_otherwise() -> None:
    theirs, ours = TrlConfig(output_dir="x", report_to="none", use_cpu=True), PPOConfig(report_to="none")
    for name in ("num_ppo_epochs", "kl_coef", "cliprange", "cliprange_value", "vf_coef", "gamma", "lam", "temperature"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert not ours.trl_compatible and not ours.bf16 and not ours.activation_checkpointing
