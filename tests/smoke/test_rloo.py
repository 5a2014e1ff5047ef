"""End-to-end RLOO on a tiny model: the rewarded word becomes more frequent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import POLICY, Policy, load_policy
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from tests.tiny import lora, save_tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config

torch.set_num_threads(1)

WORD = "sea"


def says_it(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """How often the word occurs in a response, at most three times."""
    return [min(3.0, float(text.count(WORD))) for text in responses]


def test_a_policy_learns_to_say_what_is_rewarded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = save_tiny_model(tmp_path / "base")
    settings = config(
        tmp_path / "rloo",
        per_device_train_batch_size=40,
        samples_per_prompt=8,
        num_ppo_epochs=1,
        max_steps=25,
        learning_rate=3e-2,
        kl_coef=0.005,
    )
    start = Policy(load_policy(str(base), dtype="float32").backbone, CHAT, POLICY)
    start.backbone.add_adapter(POLICY, lora(random=False))
    trainer = RLOOTrainer(start, settings, RewardSum([PythonReward(says_it)]), PROMPTS)
    assert isinstance(trainer.backbone, Backbone)
    trainer.train()
    earned = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
    assert len(earned) == 25
    assert sum(earned[:3]) / 3 < 0.3 < 1.0 < sum(earned[-3:]) / 3
    kls = [entry["objective/kl"] for entry in trainer.state.log_history if "objective/kl" in entry]
    assert abs(kls[0]) < 1e-3 < kls[-1]
