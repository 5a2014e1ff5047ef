"""Files and Hub sets, read into records: encodings, formats, limits.

May import feedback.records and below.
"""
