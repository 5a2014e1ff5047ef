"""The work of each command after its settings are read; one module or folder per command,
and `data/` for those about feedback.

May import everything but `cli`.
"""
