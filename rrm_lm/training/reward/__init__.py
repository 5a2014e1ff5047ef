"""Reward models trained on comparisons, critiques and ratings.

How critiques are trained: a response's critique follows it in the same line, and the trainer adds the cross-entropy of
the critique's tokens, times `critique_weight`, to the Bradley-Terry loss (`trainer.py`, `losses.py`). With
`critique_view` reward, the critique sees the response only through the token at which the reward is read, so what the
critique says must be in the state that the reward is computed from. At inference no critique is written.

May import training's own modules, models and below.
"""
