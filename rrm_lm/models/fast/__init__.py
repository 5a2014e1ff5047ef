"""Layers that compute the same in fewer passes, put in place of PEFT's and transformers'.

Imports nothing of this package.
"""
