"""From particles to density, momentum and velocity on a grid."""

from cosmoflow.stages.paint.command import paint, plan_paint
from cosmoflow.stages.paint.plan import make_plan
from cosmoflow.stages.paint.tasks import painted_variables, shards_near_piece

__all__ = ["make_plan", "paint", "painted_variables", "plan_paint", "shards_near_piece"]
