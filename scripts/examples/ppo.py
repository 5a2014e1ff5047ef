"""Train a policy for a few updates against a reward model and a function (run train_reward.py first).

.venv/bin/python scripts/examples/ppo.py
"""

import sys

import rrm_lm


def short(prompts, responses):
    """One point less for every 100 characters."""
    return [-len(text) / 100 for text in responses]


policy, reward, output = sys.argv[1:] or ("smollm2-135m", "outputs/rm", "outputs/ppo")
trainer = rrm_lm.PPOTrainer(
    policy,
    rewards=[reward, short],
    prompts=["How long does rice keep?", "How do I boil an egg?", "What is a good name for a cat?", "Hello!"],
    args=rrm_lm.PPOConfig(output_dir=output, overwrite_output_dir=True, max_steps=4, response_length=32),
)
trainer.train()
print(trainer.policy.respond("Hello!", max_new_tokens=32, seed=0))
