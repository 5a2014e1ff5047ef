"""One step of TRL's GRPO with `reward_funcs=FOLDER`, with given responses instead of sampled ones.

Only sampling is replaced: TRL loads and calls the reward model. Reads the task from stdin, prints the
rewards as JSON.
"""

import json
import sys
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

task = json.load(sys.stdin)
printed, sys.stdout = sys.stdout, sys.stderr
prompts = [[{"role": role, "content": text} for role, text in prompt] for prompt, _, _ in task["pairs"]]
answers = [response for _, good, bad in task["pairs"] for response in (good, bad)]
read = {}


class GivenResponses(GRPOTrainer):
    """GRPO that scores the given responses to its prompts, and keeps the rewards."""

    def _calculate_rewards(self, inputs, prompts_given, completions, completion_ids_list):
        rows = [prompts.index(prompt) for prompt in prompts_given]
        seen = {}
        chosen = []
        for row in rows:
            number = seen.get(row, 0)
            seen[row] = number + 1
            chosen.append((row, number))
        completions = [[{"role": "assistant", "content": answers[2 * row + number]}] for row, number in chosen]
        rewards = super()._calculate_rewards(inputs, prompts_given, completions, completion_ids_list)
        for (row, number), reward in zip(chosen, rewards[:, 0].tolist(), strict=True):
            read[2 * row + number] = reward
        return rewards


with tempfile.TemporaryDirectory() as folder:
    model = AutoModelForCausalLM.from_pretrained(task["base"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    trainer = GivenResponses(
        model=model,
        reward_funcs=task["folder"],
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=folder, max_steps=1, num_generations=2, per_device_train_batch_size=2 * len(prompts),
            max_completion_length=2, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
            gradient_checkpointing=False, model_init_kwargs=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    )  # fmt: skip
    trainer.train()
print(json.dumps([read[place] for place in range(len(answers))]), file=printed)
