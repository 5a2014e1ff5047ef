"""New feedback: overseers, questions to LLM judges, and collections that never repeat an answered question.

May import feedback.records and below.
"""
