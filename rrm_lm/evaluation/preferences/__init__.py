"""Evaluation of reward models on held-out comparisons: scorers, measures, benchmark sections, result files.

May import evaluation.statistics.
"""
