"""DPO on the comparisons of data/notes, by TRL's trainer: a baseline of aligned.py."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from rrm_lm.models.pretrained import load_causal_lm

MODEL = "smollm2-135m"  # what the SFT policy adapts


def train_dpo(start: Path, comparisons: Sequence[Path], out: Path, seed: int, pairs: int = 1000) -> None:
    """Train a policy with DPO and save it merged.

    Args:
        start: The adapter of the SFT policy, which is also the reference.
        comparisons: Gzipped JSON lines with `prompt`, `chosen` and `rejected` as messages.
        out: Where the merged policy goes.
        seed: Seed of the adapter and the pairs.
        pairs: How many of the comparisons are drawn; each is learned once. TRL computes
            the prompt for both responses, so all would take longer than reward model and PPO together.
    """
    rows = []
    for file in comparisons:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            rows += [json.loads(line) for line in stream]
    drawn = random.Random(seed).sample(rows, pairs)
    dataset = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in drawn])
    model = PeftModel.from_pretrained(load_causal_lm(MODEL), str(start)).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(start)
    config = DPOConfig(
        output_dir=str(out.with_name(f"{out.name}-checkpoints")), seed=seed, num_train_epochs=1, max_length=384,
        per_device_train_batch_size=8, learning_rate=1e-4, beta=0.1, bf16=False, gradient_checkpointing=False,
        precompute_ref_log_probs=True, save_strategy="no", report_to="none", logging_steps=10,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    trainer = DPOTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)
