"""`rrm-lm run`: stages from feedback to a report, each run once.

May import everything.
"""
