"""Trainers for reward models, PPO, RLOO and supervised fine-tuning, one folder each, and their shared code.

`trainer.py` is the base of all trainers: it writes and resumes checkpoints. May import models and below.
"""
