"""Compiled loops over modes.

Along the last axis ``|m|^2`` grows, or grows and then falls. A mode is mostly in the same bin as
the one before it, or in the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Complex = NDArray[Any]
Components = tuple[Complex, ...]
Factors = tuple[Floats, Floats, Floats]


@compiled(inline="always")
def find_bin(bin: int, squared: int, limits: Integers) -> int:
    """Return the bin with ``limits[bin] < squared <= limits[bin + 1]``, searched from another one.

    It is -1 below all bins, and the number of bins above them.
    """
    while bin < limits.size - 1 and squared > limits[bin + 1]:
        bin += 1
    while bin >= 0 and squared <= limits[bin]:
        bin -= 1
    return bin


@compiled()
def count_modes(
    mx: Integers, my: Integers, mz: Integers, weights: Factors, limits: Integers
) -> Floats:
    """Return the number of modes of each bin and the sum of their ``|m|``.

    Parameters
    ----------
    mx, my, mz : ndarray
        Integer wavevectors along the axes of a block.
    weights : (ndarray, ndarray, ndarray)
        Weights along each axis: along kz 2 for modes whose conjugates are left out, else 1.
    limits : ndarray
        Limits of :class:`WaveBins`.

    Returns
    -------
    (2, bins) float64
    """
    bins = limits.size - 1
    wx, wy, wz = weights
    sums: Floats = np.zeros((2, bins))
    for x in range(mx.size):
        for y in range(my.size):
            base = mx[x] * mx[x] + my[y] * my[y]
            bin = np.searchsorted(limits, base) - 1
            if bin >= bins:
                continue
            for z in range(mz.size):
                squared = base + mz[z] * mz[z]
                bin = find_bin(bin, squared, limits)
                if 0 <= bin < bins:
                    weight = wx[x] * wy[y] * wz[z]
                    sums[0, bin] += weight
                    sums[1, bin] += weight * np.sqrt(float(squared))
    return sums


@compiled()
def add_products(
    a: Components,
    b: Components,
    mx: Integers,
    my: Integers,
    mz: Integers,
    cross: Factors,
    auto: Factors,
    limits: Integers,
    both: bool,
) -> Floats:
    """Return the sums of ``Re a b*``, and of ``|b|^2``, over the modes of each bin.

    Both share a reading of ``b`` and the search for the bins. The products of a row are computed
    first, in vector instructions.

    Parameters
    ----------
    a, b : tuple of ndarray
        Components of two fields, shape ``(mx, my, mz)`` each, complex: a block of modes.
    mx, my, mz : ndarray
        Integer wavevectors along its axes.
    cross, auto : (ndarray, ndarray, ndarray)
        Factors of the products ``Re a b*`` and ``|b|^2`` along each axis.
    limits : ndarray
        Limits of :class:`WaveBins`.
    both : bool
        Whether ``|b|^2`` is summed too; else its sums are zero.

    Returns
    -------
    (2, bins) float64
    """
    bins = limits.size - 1
    fx, fy, fz = cross
    gx, gy, gz = auto
    sums: Floats = np.zeros((2, bins))
    products, squares = np.empty(mz.size), np.empty(mz.size)
    for x in range(mx.size):
        for y in range(my.size):
            base = mx[x] * mx[x] + my[y] * my[y]
            bin = np.searchsorted(limits, base) - 1
            if bin >= bins:
                continue
            products[:] = 0.0
            squares[:] = 0.0
            for part in range(len(a)):
                first, second = a[part][x, y], b[part][x, y]
                for z in range(mz.size):
                    one, two = first[z], second[z]
                    products[z] += fz[z] * (
                        np.float64(one.real) * np.float64(two.real)
                        + np.float64(one.imag) * np.float64(two.imag)
                    )
                if both:
                    for z in range(mz.size):
                        two = second[z]
                        squares[z] += gz[z] * (
                            np.float64(two.real) * np.float64(two.real)
                            + np.float64(two.imag) * np.float64(two.imag)
                        )
            product, square = 0.0, 0.0
            low, high = 1, 0  # no bin
            for z in range(mz.size):
                squared = base + mz[z] * mz[z]
                if squared <= low or squared > high:
                    if 0 <= bin < bins:
                        sums[0, bin] += fx[x] * fy[y] * product
                        sums[1, bin] += gx[x] * gy[y] * square
                    product, square = 0.0, 0.0
                    bin = find_bin(bin, squared, limits)
                    low = limits[bin] if bin >= 0 else -1
                    high = limits[bin + 1] if bin < bins else squared
                product += products[z]
                square += squares[z]
            if 0 <= bin < bins:
                sums[0, bin] += fx[x] * fy[y] * product
                sums[1, bin] += gx[x] * gy[y] * square
    return sums


@compiled()
def add_multipoles(
    a: Complex,
    b: Complex,
    mx: Integers,
    my: Integers,
    mz: Integers,
    factors: Factors,
    limits: Integers,
    axis: int,
) -> Floats:
    """Return the sums of ``(2 l + 1) L_l(mu) Re a b*`` for l = 0, 2, 4.

    Parameters
    ----------
    a, b : ndarray
        Components of two fields, shape ``(mx, my, mz)``, complex.
    mx, my, mz, limits
        See :func:`add_products`.
    factors : (ndarray, ndarray, ndarray)
        Factors of the products along each axis.
    axis : int
        0, 1 or 2: mu is the cosine of the angle between k and this axis of the arrays.

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
                bin = find_bin(bin, squared, limits)
                if not 0 <= bin < bins:
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
