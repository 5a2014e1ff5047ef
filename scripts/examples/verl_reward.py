"""A reward model as verl's custom reward function. The environment variable REWARD_MODEL names it: a folder, or the URL
of `rrm-lm serve`; without it, verl's own reward router is asked.

python -m verl.trainer.main_ppo reward.custom_reward_function.path=scripts/examples/verl_reward.py \\
    reward.custom_reward_function.name=compute_score ...

verl passes no prompt to the function, so the data needs `extra_info.prompt` (text or messages).
"""

import os

import rrm_lm

compute_score = rrm_lm.reward_function(os.environ.get("REWARD_MODEL")).compute_score
