"""Training a reward model: settings, the model and its examples, the trainer, and what is checked after saving.

May import the other modules of `api`, and settings and below.
"""
