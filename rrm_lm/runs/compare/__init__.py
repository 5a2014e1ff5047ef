"""`rrm-lm compare`: draws responses of policies, scores and judges them, and writes a report.

May import everything but `cli`.
"""
