"""The program `rrm-lm`: one thin file for each command, and `pipeline/` for `rrm-lm run`.

A command reads its settings and calls what is in `runs`. May import everything; nothing imports it.
"""
