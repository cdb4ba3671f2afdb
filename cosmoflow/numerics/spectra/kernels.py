"""Compiled loops over modes.

``|m|^2`` only grows along a row in z: each mode is in the same bin as the previous mode or in a
later one, and the loop leaves a row after the last bin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Complex = NDArray[Any]


@compiled()
def count_modes(
    mx: Integers, my: Integers, mz: Integers, weight: Floats, limits: Integers
) -> Floats:
    """Return the number of modes of each bin and the sum of their ``|m|``.

    Parameters
    ----------
    mx, my, mz : ndarray
        Integer wavevectors along the axes of a block.
    weight : ndarray
        Weights of the modes along z: 2 for modes whose conjugates are left out.
    limits : ndarray
        Limits of :class:`WaveBins`.

    Returns
    -------
    (2, bins) float64
    """
    bins = limits.size - 1
    sums: Floats = np.zeros((2, bins))
    for x in range(mx.size):
        for y in range(my.size):
            base = mx[x] * mx[x] + my[y] * my[y]
            bin = np.searchsorted(limits, base) - 1
            if bin >= bins:
                continue
            for z in range(mz.size):
                squared = base + mz[z] * mz[z]
                while bin < bins and squared > limits[bin + 1]:
                    bin += 1
                if bin >= bins:
                    break
                if bin >= 0:
                    sums[0, bin] += weight[z]
                    sums[1, bin] += weight[z] * np.sqrt(float(squared))
    return sums


@compiled()
def add_products(
    a: Complex,
    b: Complex,
    mx: Integers,
    my: Integers,
    mz: Integers,
    factors: tuple[Floats, Floats, Floats],
    limits: Integers,
) -> Floats:
    """Return the sums of ``Re a b*`` over the modes of each bin.

    Parameters
    ----------
    a, b : ndarray
        Shape ``(mx, my, mz)``, complex: a block of modes.
    mx, my, mz : ndarray
        Integer wavevectors along its axes.
    factors : (ndarray, ndarray, ndarray)
        Factors of the products along each axis.
    limits : ndarray
        Limits of :class:`WaveBins`.

    Returns
    -------
    (1, bins) float64
    """
    bins = limits.size - 1
    fx, fy, fz = factors
    sums: Floats = np.zeros((1, bins))
    for x in range(mx.size):
        for y in range(my.size):
            base = mx[x] * mx[x] + my[y] * my[y]
            bin = np.searchsorted(limits, base) - 1
            if bin >= bins:
                continue
            row = fx[x] * fy[y]
            total = 0.0
            for z in range(mz.size):
                squared = base + mz[z] * mz[z]
                if squared > limits[bin + 1]:
                    if bin >= 0:
                        sums[0, bin] += row * total
                    total = 0.0
                    while bin < bins and squared > limits[bin + 1]:
                        bin += 1
                    if bin >= bins:
                        break
                one, two = a[x, y, z], b[x, y, z]
                total += fz[z] * (
                    np.float64(one.real) * np.float64(two.real)
                    + np.float64(one.imag) * np.float64(two.imag)
                )
            if 0 <= bin < bins:
                sums[0, bin] += row * total
    return sums


@compiled()
def add_multipoles(
    a: Complex,
    b: Complex,
    mx: Integers,
    my: Integers,
    mz: Integers,
    factors: tuple[Floats, Floats, Floats],
    limits: Integers,
    axis: int,
) -> Floats:
    """Return the sums of ``(2 l + 1) L_l(mu) Re a b*`` for l = 0, 2, 4.

    Parameters
    ----------
    a, b, mx, my, mz, factors, limits
        See :func:`add_products`.
    axis : int
        0, 1 or 2: mu is the cosine of the angle between k and this axis.

    Returns
    -------
    (3, bins) float64
    """
    bins = limits.size - 1
    fx, fy, fz = factors
    sums: Floats = np.zeros((3, bins))
    for x in range(mx.size):
        for y in range(my.size):
            base = mx[x] * mx[x] + my[y] * my[y]
            bin = np.searchsorted(limits, base) - 1
            if bin >= bins:
                continue
            row = fx[x] * fy[y]
            for z in range(mz.size):
                squared = base + mz[z] * mz[z]
                while bin < bins and squared > limits[bin + 1]:
                    bin += 1
                if bin >= bins:
                    break
                if bin < 0:
                    continue
                one, two = a[x, y, z], b[x, y, z]
                product = (
                    row
                    * fz[z]
                    * (
                        np.float64(one.real) * np.float64(two.real)
                        + np.float64(one.imag) * np.float64(two.imag)
                    )
                )
                along = mx[x] if axis == 0 else (my[y] if axis == 1 else mz[z])
                mu2 = float(along * along) / float(squared)
                sums[0, bin] += product
                sums[1, bin] += product * (2.5 * (3.0 * mu2 - 1.0))
                sums[2, bin] += product * (1.125 * ((35.0 * mu2 - 30.0) * mu2 + 3.0))
    return sums
