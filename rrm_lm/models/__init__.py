"""Language models and what is put on them: the frozen backbone, adapters by role, reward heads.

`decoding/` draws responses, `saving/` reads and writes model folders. May import text, feedback and below.
"""
