"""Evaluation of reward models on held-out preferences and of policies on held-out prompts, with error bars.

`preferences/` judges reward models, `policies/` compares policies, `statistics/` has the estimators, and `reports/`
renders pages and model cards.
"""
