"""Ask a model, or a policy that ppo.py trained.

.venv/bin/python scripts/examples/respond.py outputs/ppo
"""

import sys

import rrm_lm

(model,) = sys.argv[1:] or ("smollm2-135m",)
policy = rrm_lm.Policy.from_pretrained(model)
print(policy.respond("How long does rice keep?", max_new_tokens=40, seed=0))
