"""What a command does once its settings are read.

One module for each command; `policy/` for the largest. May import everything but `cli`.
"""
