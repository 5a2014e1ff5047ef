"""`rrm-lm compare`: samples responses of policies, scores and judges them, and writes a report.

May import everything but `cli`.
"""
