"""Estimate the memory and communication of training from a configuration alone.

May import training, models and below.
"""
