"""Policies compared: answers, rewards that are not optimised, judges, best of n, over-optimisation.

May import evaluation.preferences and evaluation.statistics.
"""
