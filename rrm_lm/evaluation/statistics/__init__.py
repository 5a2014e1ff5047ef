"""Estimators and their intervals.

Imports nothing else from this package.
"""
