"""The work of each command after its settings are read; one module or folder per command.

May import everything but `cli`.
"""
