"""From fields and models to the velocity of a box, or of a part of it."""

from cosmoflow.stages.infer.arrays import infer_array, predict_box
from cosmoflow.stages.infer.command import infer, plan_infer
from cosmoflow.stages.infer.worker import Member

__all__ = [
    "Member",
    "infer",
    "infer_array",
    "plan_infer",
    "predict_box",
]
