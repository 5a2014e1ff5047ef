"""Settings that all trainers share: one device per process, and one setting under two names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.rloo.config import RLOOConfig
from rrm_lm.training.sft.config import SFTConfig

CONFIGS = [RewardConfig, PPOConfig, SFTConfig, RLOOConfig]
NAMES = ("activation_checkpointing", "gradient_checkpointing")


@pytest.mark.parametrize("config", CONFIGS)
def test_one_process_takes_one_device(config: Any, tmp_path: Path) -> None:
    args = config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert args.n_gpu == 0
    args._n_gpu = 4  # what Trainer finds on a machine with four
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size


def chosen(args: Any) -> list[Any]:
    found = [(getattr(args, name), getattr(args, f"{name}_kwargs")) for name in NAMES]
    assert found[0] == found[1]
    return list(found[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", CONFIGS)
def test_either_name_is_taken_without_a_warning(config: Any, name: str, tmp_path: Path) -> None:
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    how = {"every_n_layers": 2}
    assert chosen(config(**plain)) == [False, None]
    assert chosen(config(**plain, **{name: True, f"{name}_kwargs": how})) == [True, how]
    assert chosen(config(**plain, **{name: True, f"{name}_kwargs": '{"every_n_layers": 2}'})) == [True, how]
    both = dict.fromkeys(NAMES, name == "activation_checkpointing") | {"gradient_checkpointing": True}
    assert chosen(config(**plain, **both))[0] == both["activation_checkpointing"]  # the newer name counts
