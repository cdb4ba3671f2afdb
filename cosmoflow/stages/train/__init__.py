"""From fields to a model."""

from cosmoflow.stages.train.command import describe_model, plan_train, train

__all__ = [
    "describe_model",
    "plan_train",
    "train",
]
