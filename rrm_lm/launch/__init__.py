"""Several processes: how they start, fail together and exit. Training does not depend on this.

May import training and below.
"""
