"""`rrm-lm reward`: train a reward model on feedback, and evaluate it."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.training import RewardCommandArguments

EXAMPLES = """\
rrm-lm reward --config configs/reward.yaml
rrm-lm reward --dataset_name my_feedback.jsonl --output_dir outputs/mine
rrm-lm reward --config configs/hh.yaml --learning_rate 1e-4 --max_steps 20
rrm-lm reward --config configs/reward.yaml --resume_from_checkpoint true
rrm-lm reward --dataset_name my_feedback.jsonl --learning_curve true
accelerate launch scripts/train_reward.py --config configs/ultrafeedback.yaml
"""
COMMON = (
    "dataset_name eval_dataset_name model_name_or_path output_dir learning_rate num_train_epochs max_steps "
    "per_device_train_batch_size max_length critique_weight lora_r merge learning_curve"
)


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.settings.data import DataArguments
    from rrm_lm.settings.models import ModelArguments
    from rrm_lm.settings.parser import parse
    from rrm_lm.training.reward.config import RewardConfig

    kinds = [DataArguments, ModelArguments, RewardConfig, RewardCommandArguments]
    return parse(kinds, argv, command="rrm-lm reward", examples=EXAMPLES, common=COMMON)


def run(argv: list[str]) -> int:
    """Train, save, reload and evaluate a reward model."""
    settings = read(argv)
    from rrm_lm.runs.reward import RewardRun

    RewardRun(*settings).run()
    return 0
