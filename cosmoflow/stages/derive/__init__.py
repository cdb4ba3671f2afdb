"""Derived fields: velocity, momentum, divergence, vorticity, shear, smoothed versions."""

from cosmoflow.stages.derive.command import derive, plan_derive
from cosmoflow.stages.derive.recipes import derive_block, recipe_of

__all__ = [
    "derive",
    "derive_block",
    "plan_derive",
    "recipe_of",
]
