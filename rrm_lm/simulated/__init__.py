"""Simulated people: what they want, and how they say it. The truth lives here; training never imports it.

May import feedback and below.
"""
