"""Supervised fine-tuning on demonstrations, corrections and preferred responses.

May import training.reward, training's own modules, models and below.
"""
