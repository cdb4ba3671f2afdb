"""Comparison of predicted velocities with the true ones, given the density.

There are three figures of merit per method: the residual velocity cell by cell, the spectra of the
periodic box, and the spectra of the paper's sub-boxes (Wu et al. 2021, section 4.2). A spectrum's
ratio ``T(k)`` may be 1 for a field that is wrong everywhere, so ``r(k)`` is given with it.

All are sums over parts of the box (blocks of cells, sub-boxes, parts of a slice), which
:class:`Measured` combines. :func:`compare` computes them one after the other from arrays in memory,
``stages.evaluate`` in tasks from stores.
"""

from cosmoflow.numerics.comparison.curves import SAMPLED_AT
from cosmoflow.numerics.comparison.memory import compare
from cosmoflow.numerics.comparison.power import QUANTITIES, SUBBOX_QUANTITIES
from cosmoflow.numerics.comparison.result import Comparison, Measured
from cosmoflow.numerics.comparison.slices import Patch

__all__ = [
    "QUANTITIES",
    "SAMPLED_AT",
    "SUBBOX_QUANTITIES",
    "Comparison",
    "Measured",
    "Patch",
    "compare",
]
