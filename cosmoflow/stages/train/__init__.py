"""From fields to a model."""

from cosmoflow.stages.train.command import plan_train, train

__all__ = [
    "plan_train",
    "train",
]
