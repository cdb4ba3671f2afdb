"""Prediction of the velocity of a box, or of a region, from fields and models."""

from cosmoflow.stages.infer.arrays import infer_array, predict_box
from cosmoflow.stages.infer.command import infer, infer_store, plan_infer
from cosmoflow.stages.infer.ensemble import Member
from cosmoflow.stages.infer.layout import choose_layout
from cosmoflow.stages.infer.plan import plan_work
from cosmoflow.stages.infer.request import Device, check_work

__all__ = [
    "Device",
    "Member",
    "check_work",
    "choose_layout",
    "infer",
    "infer_array",
    "infer_store",
    "plan_infer",
    "plan_work",
    "predict_box",
]
