"""Trainers, a folder for each: reward models, PPO, RLOO, imitation; and what they share.

Checkpoints, output folders and sources of rewards are modules of this folder. May import models and below.
"""
