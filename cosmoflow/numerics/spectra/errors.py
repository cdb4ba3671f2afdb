"""Errors of spectra from the scatter between boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.spectra.sums import PowerSum

Floats = NDArray[np.float64]


def jackknife(
    sums: Sequence[PowerSum], statistic: Callable[[PowerSum], Floats]
) -> tuple[Floats, Floats]:
    """Return a statistic of all boxes and its error, by leaving out one box at a time.

    Parameters
    ----------
    sums : sequence of PowerSum
        One per box, at least one.
    statistic : callable
        Function from a sum over boxes to an array, such as a power, T(k) or r(k).

    Returns
    -------
    value : ndarray
        The statistic of the sum over all boxes.
    error : ndarray
        ``sqrt((n - 1) / n sum_i (x_i - mean x)^2)`` over the ``x_i`` without box i (Norberg et al.
        2009, eq. 6), with the shape of ``value``; NaN for a single box.
    """
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    value = np.asarray(statistic(total), np.float64)
    count = len(sums)
    if count < 2:
        return value, np.full(value.shape, np.nan)
    left = np.stack([np.asarray(statistic(total - one), np.float64) for one in sums])
    scatter = np.sum((left - left.mean(axis=0)) ** 2, axis=0)
    return value, np.sqrt((count - 1) / count * scatter)
