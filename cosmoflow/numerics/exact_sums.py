"""Sums of many floating-point numbers without rounding, so that no order of them matters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 53
_LOW_BITS = 27
_LOWEST = -1074
"""Exponents of float64 numbers, as ``frexp`` counts them, are above this and up to 1024."""


@dataclass(frozen=True, slots=True)
class ExactSum:
    """The exact sum of float64 numbers; sums of parts add with ``+``.

    Parameters
    ----------
    value : Fraction
        The sum.
    """

    value: Fraction = Fraction(0)

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> ExactSum:
        """Return the sum of an array of any shape, whose numbers are finite."""
        high, low = _tally(np.ascontiguousarray(values, np.float64).reshape(-1))
        total = 0
        for index in np.flatnonzero(high | low).tolist():
            total += ((int(high[index]) << _LOW_BITS) + int(low[index])) << index
        return cls(Fraction(total, 1 << (_MANTISSA_BITS - _LOWEST)))

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.value + other.value)

    def __float__(self) -> float:
        return float(self.value)


@numba.njit(cache=True, nogil=True)
def _tally(values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Add up the mantissas as integers, those of each exponent on their own.

    In two halves, so that 2^36 of them fit into 64 bits.
    """
    high = np.zeros(1024 - _LOWEST + 1, np.int64)
    low = np.zeros(1024 - _LOWEST + 1, np.int64)
    for value in values:
        mantissa, exponent = math.frexp(value)
        whole = np.int64(mantissa * float(1 << _MANTISSA_BITS))
        high[exponent - _LOWEST] += whole >> _LOW_BITS
        low[exponent - _LOWEST] += whole & ((1 << _LOW_BITS) - 1)
    return high, low
