"""`rrm-lm run`: stages from feedback to a page, each done once.

May import everything.
"""
