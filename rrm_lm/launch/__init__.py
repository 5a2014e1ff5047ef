"""Several processes: how they are started, fail together, and leave.

May import training and below. What is learned does not depend on it.
"""
