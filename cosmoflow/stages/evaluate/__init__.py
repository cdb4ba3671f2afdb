"""Compare predictions with the truth: figures, spectra, a report."""

from cosmoflow.stages.evaluate.command import METRICS, REPORT, evaluate, plan_evaluate
from cosmoflow.stages.evaluate.inputs import Inputs
from cosmoflow.stages.evaluate.plan import plan_work
from cosmoflow.stages.evaluate.report import paper_tables
from cosmoflow.stages.evaluate.report.methods import judge_beside_shipped

__all__ = [
    "METRICS",
    "REPORT",
    "Inputs",
    "evaluate",
    "judge_beside_shipped",
    "paper_tables",
    "plan_evaluate",
    "plan_work",
]
