"""Feedback and prompts for the public classes: read, held out, checked against the template, inspected and shown.

May import settings and below.
"""
