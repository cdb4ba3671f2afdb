"""Bins of a logarithm or an inverse hyperbolic sine, without computing the function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bins = tuple[float, float, float]
"""Bins of equal width for numba: first edge, width, last bin."""
Search = tuple[NDArray[np.float64], NDArray[np.int16], Bins]
"""Edges in a quantity, first bin by leading bits, and the bins in the function of it."""

# The leading bits of a float64: sign, exponent and four bits of the significand.
_KEPT, _DROPPED = 16, 48
# Edges are this close to where the function reaches them, relative to 1 + |value|: a thousand times
# the rounding errors of function and edges. Closer values are found by the function itself.
_CLOSE = 1e-11


def prepare_search(edges: NDArray[np.float64], first: float, step: float) -> Search:
    """Prepare the search for bins.

    Parameters
    ----------
    edges : (bins + 1,) float64
        Edges in the quantity, ascending.
    first, step : float
        The lowest edge and the bin width, in terms of the function's value.
    """
    lead = np.arange(1 << _KEPT, dtype=np.uint64) << np.uint64(_DROPPED)
    ends = [lead.view(np.float64), (lead | np.uint64((1 << _DROPPED) - 1)).view(np.float64)]
    lowest = np.minimum(*ends)
    bins = len(edges) - 1
    found = np.clip(np.searchsorted(edges, lowest, side="right") - 1, 0, bins - 1)
    # NaN belongs in the lowest bin.
    found[np.isnan(ends[0])] = 0
    return edges, found.astype(np.int16), (first, step, bins - 1.0)


@njit(inline="always")
def place(value, axis):  # type: ignore[no-untyped-def]
    """Return the bin of a value: the outermost bin beyond the edges, the lowest bin for NaN."""
    first, step, last = axis
    # This form also catches NaN, which as an integer index could point anywhere in memory.
    if not value > first:
        return 0
    return int(min(np.floor((value - first) / step), last))


@njit(inline="always")
def _search(value, edges, firsts):  # type: ignore[no-untyped-def]
    """Return the bin of a value, and whether it is too close to an edge to be certain."""
    lead: Any = np.float64(value).view(np.int64) >> _DROPPED
    found = firsts[lead & ((1 << _KEPT) - 1)]
    while found < edges.size - 2 and value >= edges[found + 1]:
        found += 1
    margin = _CLOSE * (1.0 + abs(value))
    near = abs(value - edges[found]) <= margin or abs(edges[found + 1] - value) <= margin
    return found, near


@njit(inline="always")
def find_log10(value, search):  # type: ignore[no-untyped-def]
    """Return ``place(log10(value), ...)``, four times as fast; the value must be positive."""
    edges, firsts, axis = search
    found, near = _search(value, edges, firsts)
    return place(math.log10(value), axis) if near else found


@njit(inline="always")
def find_asinh(value, search):  # type: ignore[no-untyped-def]
    """Return ``place(asinh(value), ...)``, six times as fast."""
    edges, firsts, axis = search
    found, near = _search(value, edges, firsts)
    return place(math.asinh(value), axis) if near else found
