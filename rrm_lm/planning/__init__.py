"""Memory and traffic of training, estimated from a configuration alone.

May import training, models and below.
"""
