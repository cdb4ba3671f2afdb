"""Plans of a chain of stages on a cluster that need not exist."""

from cosmoflow.stages.planning.chain import STAGES, plan
from cosmoflow.stages.planning.estimate import bundles
from cosmoflow.stages.planning.nodes import DEFAULT_GPU_NODE, DEFAULT_NODE, NODE_TYPES
from cosmoflow.stages.planning.report import ChainPlan, StageEstimate

__all__ = [
    "DEFAULT_GPU_NODE",
    "DEFAULT_NODE",
    "NODE_TYPES",
    "STAGES",
    "ChainPlan",
    "StageEstimate",
    "bundles",
    "plan",
]
