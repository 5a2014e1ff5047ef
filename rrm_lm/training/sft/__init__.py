"""Imitation of responses that people showed, corrected or preferred.

May import training.reward, training's own modules, models and below.
"""
