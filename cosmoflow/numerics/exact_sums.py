"""Sums of many floating-point numbers without rounding, independent of their order."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

# Layout of a float64: a number is (-1)^sign * significand * 2^(exponent - 1075), where the leading
# bit of a significand is not stored, and exponent 0 means 1 without that bit.
_STORED_BITS = 52
_EXPONENTS = 2048
_LEAST_EXPONENT = 1075
_LOW_BITS = 27


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
    def of(cls, values: NDArray[np.floating[Any]]) -> ExactSum:
        """Return the sum of an array of any shape; its numbers must be finite."""
        tally = empty_tallies()
        _add_all(values.reshape(-1), tally)
        return cls.of_tally(tally)

    @classmethod
    def of_tally(cls, tally: NDArray[np.int64]) -> ExactSum:
        """Return the sum of the numbers that :func:`add_exactly` added to a tally."""
        high, low = tally
        total = 0
        for exponent in np.flatnonzero(high | low).tolist():
            total += ((int(high[exponent]) << _LOW_BITS) + int(low[exponent])) << exponent
        return cls(Fraction(total, 1 << _LEAST_EXPONENT))

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.value + other.value)

    def __float__(self) -> float:
        return float(self.value)


def empty_tallies(*shape: int) -> NDArray[np.int64]:
    """Return tallies of no numbers, shape ``(*shape, 2, exponents)``.

    A tally adds up significands as integers, separately for each exponent, in two halves, so that
    the sums of 2^36 numbers fit into 64 bits.
    """
    return np.zeros((*shape, 2, _EXPONENTS), np.int64)


def sum_tallies(tallies: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the :class:`ExactSum` of each tally, in an array without the last two dimensions."""
    sums = np.empty(tallies.shape[:-2], object)
    for place in np.ndindex(sums.shape):
        sums[place] = ExactSum.of_tally(tallies[place])
    return sums


@numba.njit(inline="always")
def add_exactly(value, tally):  # type: ignore[no-untyped-def]
    """Add a finite float64 to a tally of shape ``(2, exponents)``."""
    bits = np.float64(value).view(np.int64)
    stored: Any = (bits >> _STORED_BITS) & (_EXPONENTS - 1)
    significand: Any = bits & ((1 << _STORED_BITS) - 1)
    if stored > 0:
        significand |= 1 << _STORED_BITS
    exponent = max(stored, 1)
    if bits < 0:
        significand = -significand
    tally[0, exponent] += significand >> _LOW_BITS
    tally[1, exponent] += significand & ((1 << _LOW_BITS) - 1)


@numba.njit(cache=True, nogil=True)
def _add_all(values, tally):  # type: ignore[no-untyped-def]
    for value in values:
        add_exactly(value, tally)
