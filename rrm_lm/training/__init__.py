"""Trainers, a folder for each: reward models, PPO, RLOO, supervised fine-tuning; and what they share.

`trainer.py` is the skeleton of all of them: it writes and resumes checkpoints. May import models and below.
"""
