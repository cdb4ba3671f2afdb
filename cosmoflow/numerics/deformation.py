"""Deformation of a flow: the symmetric part of the velocity gradient and its eigenvalues.

Sign and unit are those of the gradient: ``s_ij = (d_i v_j + d_j v_i) / 2``, in km/s per Mpc/h,
including the trace. The three eigenvalues thus add up to the divergence, and a negative eigenvalue
marks an axis along which matter converges. The tensor of Hoffman et al. (2012), their equation 1,
is ``-s_ij / H0``, H0 = 100 km/s per Mpc/h; our eigenvalues ascend and theirs descend, so that
``lambda_1 = -eigenvalue_1 / H0`` and so on.

References
----------
Hoffman, Y. et al. 2012, MNRAS 425, 2049, "A kinematic classification of the cosmic web".
Smith, O. K. 1961, Communications of the ACM 4, 168, "Eigenvalues of a symmetric 3 x 3 matrix".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.calculus import Differentiate, Waves

PAIRS: Final = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Order of the stored components of a symmetric tensor: xx yy zz xy xz yz."""


def cell_strain(v: Tensor, differentiate: Differentiate) -> Tensor:
    """Return the symmetric velocity gradient by differences.

    Parameters
    ----------
    v : Tensor
        Shape ``(3, nx, ny, nz)``, float32, km/s.
    differentiate : callable
        See :func:`cosmoflow.numerics.calculus.cell_divergence`.

    Returns
    -------
    Tensor
        Shape ``(6, ...)``, in the order of :data:`PAIRS`, km/s/(Mpc/h).
    """
    result = torch.empty(0)
    for row, (i, j) in enumerate(PAIRS):
        slope = differentiate(v[i], j - 3)
        if i != j:
            slope.add_(differentiate(v[j], i - 3)).mul_(0.5)
        if row == 0:
            result = slope.new_empty((len(PAIRS), *slope.shape))
        result[row].copy_(slope)
    return result


def strain_modes(modes: Tensor, waves: Waves) -> Iterator[Tensor]:
    """Yield the modes of the components of the symmetric velocity gradient, one at a time.

    Parameters
    ----------
    modes : Tensor
        Modes of the velocity, all or a block of them, shape ``(3, ...)``, complex.
    waves : (Tensor, Tensor, Tensor)
        Wavenumbers along each axis, Nyquist set to zero, shaped to broadcast over the modes.

    Yields
    ------
    Tensor
        Modes of a component, in the order of :data:`PAIRS`.
    """
    for i, j in PAIRS:
        slope = modes[i] * waves[j]
        if i != j:
            slope.add_(modes[j] * waves[i]).mul_(0.5)
        yield slope.mul_(1j)


def symmetric_eigenvalues(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the eigenvalues of a field of symmetric tensors.

    Parameters
    ----------
    tensor : (6, ...) float32
        Components xx yy zz xy xz yz, any unit.

    Returns
    -------
    (3, ...) float32
        Ascending eigenvalues in the same unit. The closed form is evaluated in float64, where its
        error is below 1e-8 of the largest eigenvalue even if two eigenvalues are equal.

    Notes
    -----
    The cells are processed one by one, so that a value does not depend on how a block was cut:
    vectorised cosines treat the last few numbers of an array differently.
    """
    components = np.ascontiguousarray(tensor).reshape(len(PAIRS), -1)
    result = np.empty((3, components.shape[1]), np.float32)
    _solve(components, result)
    return result.reshape(3, *tensor.shape[1:])


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _solve(tensor: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """Solve by Smith's closed form: the tensor is ``q + p B``; B's eigenvalues are cosines."""
    row = np.empty(6)
    for cell in range(tensor.shape[1]):
        for i in range(6):
            # Convert to float64, which numba's float() would not do.
            row[i] = tensor[i, cell]
        xx, yy, zz, xy, xz, yz = row[0], row[1], row[2], row[3], row[4], row[5]
        q = (xx + yy + zz) / 3.0
        a, b, c = xx - q, yy - q, zz - q
        p = math.sqrt((a * a + b * b + c * c + 2.0 * (xy * xy + xz * xz + yz * yz)) / 6.0)
        if p == 0.0:
            result[:, cell] = q
            continue
        a, b, c, d, e, f = a / p, b / p, c / p, xy / p, xz / p, yz / p
        half = 0.5 * (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e))
        angle = math.acos(min(max(half, -1.0), 1.0)) / 3.0
        high = q + 2.0 * p * math.cos(angle)
        low = q + 2.0 * p * math.cos(angle + 2.0 * math.pi / 3.0)
        result[0, cell] = low
        # From the trace; the clipping keeps rounding from breaking the order.
        result[1, cell] = min(max(3.0 * q - low - high, low), high)
        result[2, cell] = high
