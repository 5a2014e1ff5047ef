"""Reward models trained on comparisons, critiques and ratings.

May import training's own modules, models and below.
"""
