"""`rrm-lm sft`: fine-tune a policy on demonstrations, corrections or chosen responses."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.training import SFTRunArguments

EXAMPLES = """\
rrm-lm sft --config configs/sft.yaml
rrm-lm sft --dataset_name my_pairs.jsonl --sft_on chosen
rrm-lm sft --model_name_or_path outputs/mine --dataset_name corrections.jsonl
rrm-lm sft --config configs/sft.yaml --resume_from_checkpoint true
accelerate launch scripts/train_sft.py --config configs/sft.yaml
a row: {"prompt": "How do I boil an egg?", "completion": "Eight minutes."}
"""
COMMON = (
    "dataset_name sft_on eval_dataset_name model_name_or_path output_dir learning_rate num_train_epochs max_steps "
    "per_device_train_batch_size max_length lora_r merge"
)


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.settings.data import DataArguments
    from rrm_lm.settings.models import ModelArguments
    from rrm_lm.settings.parser import parse
    from rrm_lm.training.sft.config import SFTConfig

    kinds = [DataArguments, ModelArguments, SFTConfig, SFTRunArguments]
    return parse(kinds, argv, command="rrm-lm sft", examples=EXAMPLES, common=COMMON)


def run(argv: list[str]) -> int:
    """Train, save, reload and check a policy, and measure its held-out loss."""
    settings = read(argv)
    from rrm_lm.runs.sft import SFTRun

    SFTRun(*settings).run()
    return 0
