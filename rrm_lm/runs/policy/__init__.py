"""`rrm-lm policy`: start, prompts, rewards, trainer, monitor, results.

May import everything but `cli`.
"""
