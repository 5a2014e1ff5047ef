"""The program `rrm-lm`: `main.py` runs it, `commands.py` lists the commands, `pipeline/` is `rrm-lm run`.

A command reads its settings and calls a function in `runs`. May import everything; nothing imports it.
"""
