"""Training a policy: starting model, prompts, rewards, trainers, monitor and results.

May import the other modules of `api`, and settings and below.
"""
