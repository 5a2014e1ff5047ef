"""The public classes: read, split, check, train, score, respond, save. `rrm_lm` exports them, commands call them.

May import settings and below.
"""
