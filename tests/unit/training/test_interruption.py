"""What survives an interruption of training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from rrm_lm.errors import TrainingError
from rrm_lm.storage import verify
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.tiny import some_comparisons, tiny_reward_model
from tests.tiny_training import CHAT, config, examples, furthest, logs, plain_steps, state, trained

torch.set_num_threads(1)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_equals_never_stopping_bit_for_bit(accumulation: int, tmp_path: Path) -> None:
    """With dropout on, a schedule of the critique weight, and the end of an epoch behind the checkpoint."""
    settings = {
        "max_steps": 8 // accumulation,
        "save_strategy": "steps",
        "save_steps": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 3,
        "critique_weight_end": 0.1,
        "lr_scheduler_type": "cosine",
    }
    straight = trained(config(tmp_path / "straight", **settings), model=tiny_reward_model(dropout=0.3))
    checkpoint = tmp_path / "straight" / f"checkpoint-{4 // accumulation}"
    other = tiny_reward_model(dropout=0.3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    resumed = trained(config(tmp_path / "resumed", **settings), model=other, resume=str(checkpoint))
    assert resumed.state.global_step == 8 // accumulation
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, state(other)[name]), name
    optimizers: list[Any] = [straight.optimizer, resumed.optimizer]
    left, right = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert left.keys() == right.keys() and left
    assert all(torch.equal(left[key]["exp_avg_sq"], right[key]["exp_avg_sq"]) for key in left)
    new = [(e["step"], e["loss"], e["loss_critiques"]) for e in logs(resumed)]
    assert new == [(e["step"], e["loss"], e["loss_critiques"]) for e in logs(straight)]


def test_dropout_is_on_in_training(tmp_path: Path) -> None:
    """So that the test above says what it seems to say."""
    one, other = (trained(config(tmp_path / str(seed), seed=seed), model=tiny_reward_model(dropout=d))
                  for seed, d in ((1, 0.3), (1, 0.0)))  # fmt: skip
    assert furthest(state(one.model), state(other.model)) > 1e-3


def third_batch(args: RewardConfig, data: list[RewardExample]) -> list[RewardExample]:
    """The examples of the third step, in the order in which training with these settings takes them."""
    trainer = RewardTrainer(tiny_reward_model(), args, data, processing_class=CHAT.tokenizer)
    return list(trainer.get_train_dataloader())[2]


@pytest.mark.parametrize(("value", "loss"), [(math.nan, "nan"), (math.inf, "nan")])  # inf - inf
def test_a_loss_that_is_no_number_stops_before_the_step(value: float, loss: str, tmp_path: Path) -> None:
    args = plain_steps(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, per_device_train_batch_size=2,
                       micro_batch_tokens=1)  # fmt: skip
    model = tiny_reward_model()
    data = examples(model, some_comparisons(8))
    victim = third_batch(args, data)[1]
    data[data.index(victim)] = replace(victim, ratings=((0, value),))
    after_two: dict[str, Tensor] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state_: Any, control: Any, **kwargs: Any) -> None:
            after_two.update(state(model))

    with pytest.raises(TrainingError) as caught:
        trained(args, make=lambda _: data, model=model, callbacks=[Watch()])
    assert "step 3" in str(caught.value) and loss in str(caught.value)
    assert victim.origin in str(caught.value)
    assert all(e.origin not in str(caught.value) for e in data if e.origin != victim.origin)
    assert furthest(state(model), after_two) == 0  # nothing moved in the third step
    newest = newest_verified(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2" and not verify(newest)
    fresh = tiny_reward_model()
    fresh.load_adapter_state(newest)
    assert furthest(state(fresh), after_two) == 0


def test_usual_files_are_left(tmp_path: Path) -> None:
    trainer = trained(config(tmp_path, save_strategy="steps", save_steps=1))
    trainer.save_state()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        written = json.loads((folder / "trainer_state.json").read_text())
        assert written["global_step"] == 2 and written["log_history"][0]["loss"] > 0
    assert not verify(tmp_path / "checkpoint-2")
    trainer.save_model(str(tmp_path / "final"))
    assert {"adapter_model.safetensors", "adapter_config.json", "reward_model.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "final").iterdir()
    }


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = tiny_reward_model()
    data = examples(model, some_comparisons(12))
    args = config(
        tmp_path, learning_rate=3.0, max_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=False, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer = trained(args, make=lambda _: data[:6], model=model, eval_dataset=data[6:])
    losses = {entry["step"]: entry["eval_loss"] for entry in logs(trainer, "eval_loss")}
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 3 and best != 3  # with this learning rate the last one is not the best
    fresh = tiny_reward_model()
    fresh.load_adapter_state(tmp_path / f"checkpoint-{best}")
    assert furthest(state(model), state(fresh)) == 0
