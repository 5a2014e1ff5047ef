"""One setting under the two names that versions of transformers have for it."""

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
