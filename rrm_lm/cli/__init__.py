"""The program `rrm-lm`: one thin file per command, and `pipeline/` for `rrm-lm run`.

A command reads its settings and calls `runs` or `api`. May import everything; nothing imports it.
"""
