"""TRL's RLOO on the shared backbone.

May import training.ppo, training's own modules, models and below.
"""
