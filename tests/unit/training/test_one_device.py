"""A process that sees several GPUs computes on one of them: Trainer would copy the model to all, and batches not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.rloo.config import RLOOConfig
from rrm_lm.training.sft.config import SFTConfig


@pytest.mark.parametrize("config", [RewardConfig, PPOConfig, SFTConfig, RLOOConfig])
def test_one_process_takes_one_device(config: Any, tmp_path: Path) -> None:
    args = config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert args.n_gpu == 0
    args._n_gpu = 4  # what Trainer finds on a machine with four
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size
