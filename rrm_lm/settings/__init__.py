"""The dataclasses of all settings, their parser, and what a settings file may do.

Nothing here loads data or a model. May import launch and below.
"""
