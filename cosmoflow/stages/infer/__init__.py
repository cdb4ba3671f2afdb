"""Prediction of the velocity of a box, or of a region, from fields and models."""

from cosmoflow.stages.infer.arrays import infer_array, predict_box
from cosmoflow.stages.infer.command import infer, infer_store, plan_infer
from cosmoflow.stages.infer.ensemble import Member
from cosmoflow.stages.infer.layout import choose_layout, count_workers
from cosmoflow.stages.infer.plan import plan_work
from cosmoflow.stages.infer.request import Device, check_work
from cosmoflow.stages.infer.requests import count_scatter_check
from cosmoflow.stages.infer.shipped import (
    Shipped,
    find_shipped,
    predict_shipped,
    predict_shipped_box,
    prediction_seconds,
)

__all__ = [
    "Device",
    "Member",
    "Shipped",
    "check_work",
    "choose_layout",
    "count_scatter_check",
    "count_workers",
    "find_shipped",
    "infer",
    "infer_array",
    "infer_store",
    "plan_infer",
    "plan_work",
    "predict_box",
    "predict_shipped",
    "predict_shipped_box",
    "prediction_seconds",
]
