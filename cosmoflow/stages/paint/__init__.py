"""From particles to density, momentum and velocity on a grid."""

from cosmoflow.stages.paint.command import paint, plan_paint

__all__ = [
    "paint",
    "plan_paint",
]
