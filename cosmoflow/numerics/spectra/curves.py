"""Binned spectra of two fields, and quantities derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Binned spectra of two fields ``a`` and ``b``, which may be the same field.

    Attributes
    ----------
    k : ndarray
        Shape ``(bins,)``, float64, mean wavenumber of the bin's modes, h/Mpc.
    modes : ndarray
        Shape ``(bins,)``, float64, number of wavevectors, counting both ``k`` and ``-k``.
    auto_a, auto_b, cross : ndarray
        Shape ``(bins,)``, float64, field unit squared times (Mpc/h)^3; ``cross`` is the real part.
    """

    k: Floats
    modes: Floats
    auto_a: Floats
    auto_b: Floats
    cross: Floats

    @property
    def transfer(self) -> Floats:
        """``T(k) = P_bb / P_aa``: a ratio of powers, as in the paper; NaN where ``P_aa`` is 0."""
        return divide(self.auto_b, self.auto_a)

    @property
    def correlation(self) -> Floats:
        """``r(k) = P_ab / sqrt(P_aa P_bb)``; NaN where either power is zero."""
        return divide(self.cross, np.sqrt(self.auto_a) * np.sqrt(self.auto_b))

    def sample(self, values: Floats, k: Sequence[float]) -> Floats:
        """Interpolate a curve linearly in k between the bins' mean wavenumbers; NaN outside."""
        result: Floats = np.interp(k, self.k, values, left=np.nan, right=np.nan)
        return result


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is zero."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0.0)
    return result
