"""How close predicted velocities come to the true ones, given the density.

Three figures of merit per method: the residual velocity cell by cell, the spectra of the periodic
box, and the spectra of the sub-boxes that the paper cuts out (Wu et al. 2021, section 4.2). A
spectrum's ratio ``T(k)`` may be 1 for a field that is wrong everywhere, so ``r(k)`` goes with it.

All are sums over parts of the box, blocks of cells, sub-boxes, parts of a slice, that a
:class:`Measured` puts together: :func:`compare` takes them from arrays in memory, one after the
other, ``stages.evaluate`` from stores, by tasks.
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
