"""What launches are refused. What sharding does is in tests/distributed/."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rrm_lm.errors import ConfigError
from rrm_lm.models import sharding
from rrm_lm.models.pretrained import default_device
from rrm_lm.models.sharding import shards_models


def launched(**plugins: Any) -> Any:
    state = SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None)
    vars(state).update({f"{name}_plugin": SimpleNamespace(**settings) for name, settings in plugins.items()})
    return SimpleNamespace(state=state, num_processes=2, is_fsdp2=True, device=default_device())


@pytest.mark.parametrize("stage", [0, 3])
def test_deepspeed_that_takes_weights_away_is_refused(stage: int) -> None:
    with pytest.raises(ConfigError, match=f"ZeRO stage {stage}") as error:
        shards_models(launched(deepspeed={"zero_stage": stage}))
    assert "fsdp2.yaml" in str(error.value.remedy) and "zero2.yaml" in str(error.value.remedy)


def test_the_first_fsdp_is_refused() -> None:
    with pytest.raises(ConfigError, match="first version of FSDP"):
        shards_models(launched(fsdp={"fsdp_version": 1}))


def test_a_machine_with_a_gpu_does_not_shard_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = launched(fsdp={"fsdp_version": 2})
    monkeypatch.setattr(sharding, "default_device", lambda: torch.device("cuda"))
    made.device = torch.device("cpu")
    with pytest.raises(ConfigError, match="CPU of a machine with a GPU"):
        shards_models(made)


def test_others_are_taken() -> None:
    assert not shards_models(launched()) and not shards_models(launched(deepspeed={"zero_stage": 2}))
    assert shards_models(launched(fsdp={"fsdp_version": 2}))
