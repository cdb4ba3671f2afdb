"""Training of a model on fields stores."""

from cosmoflow.stages.train.command import FILTER_BYTES, plan_train, train
from cosmoflow.stages.train.plan import plan_training

__all__ = ["FILTER_BYTES", "plan_train", "plan_training", "train"]
