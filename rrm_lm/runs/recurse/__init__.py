"""`rrm-lm recurse`: a tree of tasks solved, and its helpers used elsewhere.

May import everything but `cli`.
"""
