"""Dataclasses filled from a YAML file and flags, with `--help` and errors that name the file and line, or the flag.

May import the permissions of `settings`, launch and below.
"""
