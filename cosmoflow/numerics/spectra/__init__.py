"""Auto and cross power spectra of periodic cubes.

``P(k) = V / N^2 |a(k)|^2`` in field unit squared times (Mpc/h)^3, with the unnormalised transform
``a(k)`` of ``N = n^3`` cells. :class:`PowerSum` holds the sums; those of two disjoint sets of modes
(rows of one box, or boxes of one size) add with ``+``.
"""

from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.curves import Spectrum
from cosmoflow.numerics.spectra.sums import (
    WINDOWS,
    auto_power,
    cross_power,
    jackknife,
    join_interlaced,
    sum_modes,
    sum_products,
)
from cosmoflow.numerics.spectra.terms import Products, Term, sum_terms
from cosmoflow.numerics.spectra.totals import POLES, PowerSum

__all__ = [
    "POLES",
    "WINDOWS",
    "PowerSum",
    "Products",
    "Spectrum",
    "Term",
    "WaveBins",
    "auto_power",
    "cross_power",
    "jackknife",
    "join_interlaced",
    "sum_modes",
    "sum_products",
    "sum_terms",
]
