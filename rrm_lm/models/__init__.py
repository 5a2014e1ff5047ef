"""Language models: the frozen backbone, one adapter per role, and reward heads.

`decoding/` samples responses; `saving/` reads and writes model folders. May import text, feedback and below.
"""
