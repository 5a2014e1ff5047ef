"""Every dataclass of options, the parser that fills them, and what a settings file may do.

Nothing here loads data or a model. May import launch and below.
"""
