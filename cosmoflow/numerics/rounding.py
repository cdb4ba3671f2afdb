"""Rounding of values to a given accuracy, so that they compress."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_EXACT = 2.0**24
"""Number of steps up to which float32 resolves less than a step."""
_SMALLEST, _LARGEST = 2.0**-126, 2.0**103
"""Smallest and largest step of which float32 can represent that many multiples."""


def rounding_step(error: float) -> float:
    """Return the largest power of two whose multiples come within ``error`` of every number.

    Parameters
    ----------
    error : float
        Allowed error, above 0.

    Returns
    -------
    float
        The step: half of it is at most ``error``.

    Raises
    ------
    ValueError
        The error is not a positive number, or is beyond the range of float32.
    """
    if not 0.0 < error < math.inf:
        raise ValueError(f"the allowed error must be a positive number, not {error}")
    # error = mantissa * 2**exponent with a mantissa in [0.5, 1): half a step is 2**(exponent - 1).
    step = math.ldexp(1.0, math.frexp(error)[1])
    if not _SMALLEST <= step <= _LARGEST:
        raise ValueError(f"the allowed error {error} is beyond the range of float32")
    return step


def round_to(values: NDArray[np.float32], error: float) -> NDArray[np.float32]:
    """Round values to multiples of a power of two.

    The last bits of their mantissas become zeros, which helps a compressor that shuffles bytes.
    Unlike with a fixed number of bits the error is absolute: the same in voids as in clusters.

    Parameters
    ----------
    values : array, float32
        Values in any unit; values that are not finite are unchanged.
    error : float
        Maximum error, in the same unit; 0 for none.

    Returns
    -------
    array, float32
        New array in which no value changes by more than ``error``. Halves go to the even multiple,
        and values of more than 2^24 steps, which have no bits to lose, are unchanged.
    """
    if error == 0.0:
        return values.copy()
    step = rounding_step(error)
    # Powers of two divide and multiply without rounding, as long as nothing leaves the range.
    with np.errstate(over="ignore"):
        scaled = values / np.float32(step)
    np.rint(scaled, out=scaled)
    rounded = scaled * np.float32(step)
    # Remove the sign of zero: both zeros are equal but would be two patterns to the compressor.
    rounded += np.float32(0.0)
    return np.where(np.abs(values) < np.float32(_EXACT * step), rounded, values)
