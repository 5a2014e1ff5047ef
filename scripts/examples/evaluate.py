"""Evaluate a reward model on held-out comparisons (run train_reward.py first).

.venv/bin/python scripts/examples/evaluate.py outputs/rm
"""

import sys

import rrm_lm

(model,) = sys.argv[1:] or ("outputs/rm",)
results = rrm_lm.evaluate(model, "data/assistant/heldout.jsonl.gz")
for name, numbers in results["sets"].items():
    print(name, numbers["accuracy"])
