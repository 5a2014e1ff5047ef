"""Adapter folders as PEFT writes them, and policies as this package does.

May import models.backbone and below.
"""
