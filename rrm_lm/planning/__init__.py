"""What training takes, worked out from a configuration alone: memory, traffic, what fits.

May import training, models and below.
"""
