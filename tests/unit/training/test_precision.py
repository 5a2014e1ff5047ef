"""The rule of precision, in every trainer: a bfloat16 backbone, and float32 for what is trained and summed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, FitCounts
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import SFTTrainer, imitations, to_imitate
from tests.tiny import lora, some_comparisons, tiny_chat, tiny_model, tiny_reward_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting, tiny_agent, trainer

torch.set_num_threads(1)
BF16 = torch.bfloat16
SHARED: dict[str, Any] = {
    "use_cpu": True,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def reward(folder: Path) -> Any:
    model = tiny_reward_model(model=tiny_model(dtype=BF16))
    examples = ExampleBuilder(tiny_chat(), model.backbone).comparisons(some_comparisons(8))
    args = RewardConfig(output_dir=str(folder), sft_weight=0.2, **SHARED)
    return RewardTrainer(model, args, examples, processing_class=tiny_chat().tokenizer)


def ppo(folder: Path) -> Any:
    return trainer(folder, tiny_agent(value="adapter", reward=True, model=tiny_model(dtype=BF16)))


def policy() -> Policy:
    backbone = Backbone(tiny_model(dtype=BF16), pad_id=0)
    backbone.add_adapter(POLICY, lora())
    return Policy(backbone, CHAT, POLICY)


def sft(folder: Path) -> Any:
    examples = imitations(CHAT, to_imitate(Feedback.of(some_comparisons(8)), ["chosen"]), FitCounts())
    return SFTTrainer(policy(), SFTConfig(output_dir=str(folder), **SHARED), examples, settings=PolicySettings("tiny"))


def rloo(folder: Path) -> Any:
    args = config(folder, per_device_train_batch_size=8, samples_per_prompt=2, num_ppo_epochs=1)
    return RLOOTrainer(policy(), args, RewardSum([PythonReward(counting)]), PROMPTS)


@pytest.mark.parametrize("make", [reward, ppo, sft, rloo])
def test_what_is_trained_is_in_float32_and_the_rest_in_bfloat16(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path)
    gradients: set[torch.dtype] = set()
    losses: set[torch.dtype] = set()
    backward = made.accelerator.backward

    def watched(loss: Tensor, **more: Any) -> None:
        losses.add(loss.dtype)
        backward(loss, **more)
        gradients.update(p.grad.dtype for p in made.model.parameters() if p.grad is not None)

    monkeypatch.setattr(made.accelerator, "backward", watched)
    made.train()
    named = dict(made.model.named_parameters())
    trained = [p for p in named.values() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == gradients == losses == {torch.float32}
    frozen = {name: p.dtype for name, p in named.items() if not p.requires_grad and "lora_" not in name}
    assert {dtype for name, dtype in frozen.items() if "head" not in name} == {BF16}
    states = [value for state in made.optimizer.state.values() for value in state.values() if value.ndim]
    assert states and {value.dtype for value in states} == {torch.float32}
