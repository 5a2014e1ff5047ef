"""Sample responses from a model: rollouts with a cache, sampling, log-probabilities of tokens.

May import models.backbone and below.
"""
