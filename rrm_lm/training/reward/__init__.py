"""Reward models trained on comparisons, critiques and ratings.

How critiques are trained: a critique follows its response in the same line, and the trainer adds the cross-entropy of
its tokens, times `critique_weight`, to the Bradley-Terry loss (`trainer.py`; the cross-entropy itself is
`RewardModel._token_nll` in `models/reward.py`). With `critique_view` reward,
the critique attends to the response only through the token at which the reward is read, so its content must be in the
state that the reward is computed from. At inference, no critique is generated.

May import training's own modules, models and below.
"""
