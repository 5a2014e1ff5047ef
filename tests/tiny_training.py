"""Short training runs on tiny models, and what to compare of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rrm_lm.feedback.records import Comparison
from rrm_lm.models.reward import RewardModel
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.tiny import critique, rating, some_comparisons, tiny_chat, tiny_reward_model

CHAT = tiny_chat()
MIXED = 15  # examples that `mixed` makes


def config(folder: Path, **more: Any) -> RewardConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return RewardConfig(**{**settings, **more})


def plain_steps(folder: Path, **more: Any) -> RewardConfig:
    """Steps of plain gradient descent, which do not magnify rounding as Adam does where a gradient is near zero."""
    settings = {"optim": "sgd", "learning_rate": 0.02, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return config(folder, **{**settings, **more})


def examples(model: RewardModel, records: Sequence[Comparison], **more: Any) -> list[RewardExample]:
    return ExampleBuilder(CHAT, model.backbone, **more).comparisons(records)


def mixed(model: RewardModel) -> list[RewardExample]:
    """Pairs with and without critiques, rated responses, and separate critiques."""
    builder = ExampleBuilder(CHAT, model.backbone)
    rated = [rating(f"the sea {n}?", "the moon " * (n + 1), n / 4, row=20 + n) for n in range(4)]
    said = [critique(f"the sea {n}?", "the moon " * (n + 1), "too long and not clear", row=30 + n) for n in (1, 5)]
    made = builder.comparisons(some_comparisons(10)) + builder.responses(said, rated)
    assert len(made) == MIXED
    return made


def trained(
    args: RewardConfig,
    make: Callable[[RewardModel], list[RewardExample]] = mixed,
    model: RewardModel | None = None,
    resume: str | None = None,
    **more: Any,
) -> RewardTrainer:
    model = model if model is not None else tiny_reward_model()
    trainer = RewardTrainer(model, args, make(model), processing_class=CHAT.tokenizer, **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def furthest(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def logs(trainer: RewardTrainer, key: str = "loss") -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if key in entry]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))
