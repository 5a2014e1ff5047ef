"""Pages and model cards from the numbers of the other folders here.

May import the rest of evaluation; computes no number of its own.
"""
