"""Distillation in little, for its tests."""

from fresco.reference import distill
from fresco.reference import trajectories as drawn


def shorten(patch):
    """A shard has one trajectory of few steps, but all code runs."""
    patch.setattr(drawn, "PER_SHARD", 1)
    patch.setattr(drawn, "SUBSTEPS", 2)
    patch.setattr(drawn, "BORDERS", (1.0, 0.95, 0.5, 0.0))
    patch.setattr(drawn, "LIFTED_BORDERS", (0.99, 0.7, 0.0))
    patch.setattr(distill, "BATCH", {"fine": 1, "coarse": 1, "lifted": 1})
