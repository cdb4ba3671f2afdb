"""Compare predictions with the truth: figures, spectra, a report."""

from cosmoflow.stages.evaluate.command import (
    METRICS,
    REPORT,
    evaluate,
    plan_evaluate,
    residual_rows,
)

__all__ = [
    "METRICS",
    "REPORT",
    "evaluate",
    "plan_evaluate",
    "residual_rows",
]
