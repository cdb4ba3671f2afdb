"""The figures of an evaluation report, as PNG and PDF files narrow enough to read on a phone.

Every function takes a :class:`~cosmoflow.numerics.comparison.Comparison` and a folder and returns
what it drew. The same numbers give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report.figures.box import (
    residual_by_density,
    residual_map,
    whole_box,
)
from cosmoflow.stages.evaluate.report.figures.counts import distributions, joint_distributions
from cosmoflow.stages.evaluate.report.figures.drawing import Figure
from cosmoflow.stages.evaluate.report.figures.errors import expected_errors
from cosmoflow.stages.evaluate.report.figures.power import spectra
from cosmoflow.stages.evaluate.report.figures.slices import (
    derived_slices,
    histograms,
    velocity_slices,
)

__all__ = ["Figure", "make_figures"]

_ALL = (
    velocity_slices,
    histograms,
    distributions,
    derived_slices,
    joint_distributions,
    spectra,
    residual_map,
    residual_by_density,
    whole_box,
    expected_errors,
)


def make_figures(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw all figures of a report into ``folder``, in the order the report shows them."""
    return [figure for draw in _ALL for figure in draw(comparison, folder)]
