"""`pipeline("text-classification")` on a merged folder. Reads the task from stdin, prints the rewards as JSON."""

import json
import sys

from transformers import pipeline

task = json.load(sys.stdin)
printed, sys.stdout = sys.stdout, sys.stderr
pipe = pipeline("text-classification", task["folder"], device="cpu")
texts = []
for prompt, good, bad in task["pairs"]:
    for response in (good, bad):
        messages = [{"role": role, "content": text} for role, text in (*prompt, ("assistant", response))]
        texts.append(pipe.tokenizer.apply_chat_template(messages, tokenize=False))
print(json.dumps([result["score"] for result in pipe(texts, batch_size=4)]), file=printed)
