"""Simulated people: what they want and how they say it. The gold reward is defined here; training never imports it.

May import feedback and below.
"""
