"""`rrm-lm reward`: read, split, train, save, and check what was saved.

May import everything but `cli`.
"""
