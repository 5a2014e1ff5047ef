"""RewardBench's own `rewardbench()` on a merged folder. Reads the task from stdin, prints the rewards as JSON."""

import json
import os
import sys
import tempfile

import transformers

# Its pipeline moves inputs to "cuda" by name; here they are not moved.
transformers.BatchEncoding.to = lambda self, *args, **kwargs: self

from rewardbench.rewardbench import Args, rewardbench  # noqa: E402

task = json.load(sys.stdin)
printed, sys.stdout = sys.stdout, sys.stderr


def talk(prompt, response):
    return [{"role": role, "content": text} for role, text in (*prompt, ("assistant", response))]


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    with open("pairs.json", "w") as file:
        for prompt, good, bad in task["pairs"]:
            file.write(json.dumps({"chosen": talk(prompt, good), "rejected": talk(prompt, bad)}) + "\n")
    os.symlink(task["folder"], "model")
    args = Args(
        model="model", dataset="pairs.json", load_json=True, not_quantized=True, torch_dtype="float32",
        batch_size=4, output_dir=folder + "/out/",
    )  # fmt: skip
    rewardbench(args)
    with open("out/model_outputs.jsonl") as file:
        rows = [json.loads(line) for line in file]


def number(value):
    return float(value[0] if isinstance(value, list) else value)


rewards = [number(row[key]) for row in rows for key in ("scores_chosen", "scores_rejected")]
print(json.dumps(rewards), file=printed)
