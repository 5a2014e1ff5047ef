"""Read and write adapter folders in PEFT's format, and policies.

May import models.backbone and below.
"""
