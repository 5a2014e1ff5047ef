"""Training a reward model: settings, the starting model, the trainer, and the checks after saving.

May import the other modules of `api`, and settings and below.
"""
