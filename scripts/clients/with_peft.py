"""PEFT on an adapter folder, as its model card says. Reads the task from stdin, prints the rewards as JSON."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

task = json.load(sys.stdin)
printed, sys.stdout = sys.stdout, sys.stderr
tokenizer = AutoTokenizer.from_pretrained(task["folder"])
backbone = AutoModelForSequenceClassification.from_pretrained(
    task["base"], num_labels=1, pad_token_id=tokenizer.pad_token_id
)
model = PeftModel.from_pretrained(backbone, task["folder"]).eval()
rewards = []
for prompt, good, bad in task["pairs"]:
    for response in (good, bad):
        messages = [{"role": role, "content": text} for role, text in (*prompt, ("assistant", response))]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            rewards.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
print(json.dumps(rewards), file=printed)
