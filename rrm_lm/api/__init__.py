"""The public classes, which `rrm_lm` exports and the commands use: reward models, policies and their trainers.

May import settings and below.
"""
