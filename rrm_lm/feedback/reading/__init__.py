"""Read files and Hub sets into records: encodings, formats, limits.

May import feedback.records and below.
"""
