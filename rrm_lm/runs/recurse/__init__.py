"""`rrm-lm recurse`: solves a tree of tasks (`run.py`), and loads its helpers for other commands (`solved_helper.py`).

May import everything but `cli`.
"""
