"""`rrm-lm compare`: answers of policies, what they are worth, and the page about it.

May import everything but `cli`.
"""
