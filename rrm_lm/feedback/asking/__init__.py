"""New feedback: overseers, questions to judges, and a collection that asks nobody twice.

May import feedback.records and below.
"""
