"""Train a reward model from 60 comparisons of data/assistant; 10% of their prompts are held out.

.venv/bin/python scripts/examples/train_reward.py
"""

import gzip
import json
import sys

from peft import LoraConfig

import rrm_lm

model, output = sys.argv[1:] or ("smollm2-135m", "outputs/rm")
with gzip.open("data/assistant/train.jsonl.gz", "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file][:60]
trainer = rrm_lm.RewardTrainer(
    model=model,
    args=rrm_lm.RewardConfig(output_dir=output, overwrite_output_dir=True, learning_rate=5e-4, max_length=384),
    train_dataset=rows,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
print(trainer.evaluate())
