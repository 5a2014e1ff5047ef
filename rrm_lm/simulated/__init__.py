"""Simulated users: their preferences and wording. They define the gold reward, so training never imports this folder.

May import feedback and below.
"""
