"""Score two responses to one prompt (run train_reward.py first).

.venv/bin/python scripts/examples/score.py outputs/rm
"""

import sys

import rrm_lm

(model,) = sys.argv[1:] or ("outputs/rm",)
reward = rrm_lm.RewardModel.from_pretrained(model)
print(reward.score("How long does rice keep?", ["Four days in the fridge.", "Rice is a grain."]))
