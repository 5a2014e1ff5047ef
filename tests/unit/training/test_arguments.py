"""Settings that all trainers share: one device per process, and one setting under two names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rrm_lm.errors import ConfigError
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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"report_to": ["tensorboard"]}, "report_to tensorboard needs a package that is not installed"),
        ({"report_to": ["wanbd"]}, "report_to wanbd is not a tracker.*wandb"),
        ({"optim": "adamw_bnb_8bit"}, "adamw_bnb_8bit needs a package that is not installed.*bitsandbytes"),
        ({"optim": "adamw_anyprecision"}, "adamw_anyprecision needs a package that is not installed.*torchdistx"),
    ],
)
@pytest.mark.parametrize("config", CONFIGS)
def test_missing_packages_are_found_before_a_model_is_loaded(
    config: Any, settings: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/huggingface/transformers/issues/39878"""
    from transformers import trainer_optimizer
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    monkeypatch.setattr(trainer_optimizer, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=says):
        config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_a_tracker_that_is_installed_and_an_optimizer_that_needs_a_model_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    assert RewardConfig(**plain, report_to=["tensorboard"]).report_to == ["tensorboard"]
    assert RewardConfig(**plain, report_to="none", optim="adafactor").optim == "adafactor"
