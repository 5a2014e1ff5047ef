"""Estimates with intervals: the only home of their formulas.

Imports nothing of this package.
"""
