"""New feedback: overseers, questions to LLM judges, and collections that never repeat a question.

May import feedback.records and below.
"""
