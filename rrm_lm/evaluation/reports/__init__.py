"""Pages and model cards from the results of the other folders.

May import the rest of evaluation. Computes no results of its own.
"""
