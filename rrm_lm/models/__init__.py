"""Language models and what is put on them: the frozen backbone, adapters by role, reward heads.

Concepts are modules of this folder; `decoding/` draws responses, `fast/` computes layers quicker, `saving/` has the
folders that models are kept in. May import text, feedback and below.
"""
