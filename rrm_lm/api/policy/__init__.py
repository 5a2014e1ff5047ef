"""`rrm-lm policy`: start, prompts, rewards, trainer, monitor, results.

May import the other modules of `api`, and settings and below.
"""
