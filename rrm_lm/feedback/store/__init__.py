"""What people said, in a SQLite file of append-only events, and what is made of it: records, exports, agreement.

`events` defines items, answers and their fold into a state, `files` keeps events on disk, `records` turns the state
into records for training, `transfer` imports, exports and merges.
"""
