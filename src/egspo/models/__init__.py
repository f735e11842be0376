"""Masked diffusion language models: one file a family, the parts they share, and where their files are.

`egspo.models.family` finds the family of a checkpoint. Nothing of a checkpoint is ever executed.
"""
