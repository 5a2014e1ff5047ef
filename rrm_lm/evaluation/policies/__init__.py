"""Comparison of policies: samples, rewards that are not optimized, judges, best-of-n, over-optimization.

May import evaluation.preferences and evaluation.statistics.
"""
