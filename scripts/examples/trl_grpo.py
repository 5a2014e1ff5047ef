"""Train a policy with TRL's GRPO against a reward model (run train_reward.py first).

.venv/bin/python scripts/examples/trl_grpo.py smollm2-135m outputs/rm outputs/grpo

The second argument may also be the URL of `rrm-lm serve`.
"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

import rrm_lm
from rrm_lm.models.pretrained import resolve

policy, reward, output = sys.argv[1:] or ("smollm2-135m", "outputs/rm", "outputs/grpo")
questions = ["How long does rice keep?", "What is the moon made of?", "Name a color.", "Hello!"]
trainer = GRPOTrainer(
    model=resolve(policy),
    reward_funcs=rrm_lm.reward_function(reward),
    args=GRPOConfig(
        output_dir=output,
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        logging_steps=1,
        report_to="none",
        bf16=False,
    ),
    train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions]),
)
trainer.train()
for entry in trainer.state.log_history:
    if "reward" in entry:
        print(f"step {entry['step']}: mean reward {entry['reward']:.3f}")
