"""The figures of an evaluation report, as PNG and PDF files narrow enough to read on a phone.

Every function takes a :class:`~cosmoflow.numerics.comparison.Comparison` and a folder and returns
what it drew. The same numbers give the same bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _collecting_figures_only():
        return [figure for draw in _ALL for figure in draw(comparison, folder)]


@contextmanager
def _collecting_figures_only() -> Iterator[None]:
    """Let Python's garbage collector look at new objects only.

    A figure is full of references in circles, so that each sets off several collections. These
    would look at all objects of all libraries every time, which takes as long as a figure.
    """
    if gc.get_freeze_count():
        # The caller has frozen its objects, and may want to unfreeze them itself.
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
