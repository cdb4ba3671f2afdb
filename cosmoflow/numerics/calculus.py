"""Gradient, divergence and curl of fields in a periodic cube or in a cube cut out of one.

There are two rules. ``spectral`` multiplies the modes of a periodic field by ``i k``. It is exact
for every wave on the grid; the Nyquist wave is set to zero because the sign of its derivative is
undefined. ``difference`` takes second-order central differences, as in the paper: they wrap around
a periodic box and are one-sided at the faces of a cut-out cube, as in :func:`numpy.gradient`. A
block with a halo of one cell has both neighbours of every cell, so its differences are identical to
those of the box from which it was cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cosmoflow.numerics import fourier

Differentiate = Callable[[Tensor, int], Tensor]
"""Function from a field ``(..., nx, ny, nz)`` and an axis (-3, -2 or -1) to a new tensor."""

Waves = tuple[Tensor, Tensor, Tensor]
"""Wavenumbers along x, y and z, h/Mpc, shaped to broadcast over modes."""

# curl_i = d_j v_k - d_k v_j, for the even permutations (i, j, k).
_CYCLIC = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def _require_vector(field: Tensor) -> None:
    if field.dim() < 4 or field.shape[-4] != 3:
        raise ValueError(f"a vector field has shape (..., 3, n, n, n), not {tuple(field.shape)}")


def difference(field: Tensor, axis: int, cell: float, *, periodic: bool) -> Tensor:
    """Differentiate ``(..., n, n, n)`` along ``axis``, one of -3, -2 and -1."""
    if periodic:
        return (torch.roll(field, -1, axis) - torch.roll(field, 1, axis)) / (2.0 * cell)
    return torch.gradient(field, spacing=cell, dim=axis)[0]


def inner_difference(field: Tensor, axis: int, cell: float) -> Tensor:
    """Differentiate a block with a halo of one cell, at the block's inner cells.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., nx + 2, ny + 2, nz + 2)``.
    axis : int
        Axis: -3, -2 or -1.
    cell : float
        Side of a cell, Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(..., nx, ny, nz)``, field unit per Mpc/h, identical to the last bit to the
        differences in the whole periodic box.
    """

    def shifted(step: int) -> Tensor:
        part = field
        for other in fourier.AXES:
            first = 1 + step * (other == axis)
            part = part.narrow(other, first, field.shape[other] - 2)
        return part

    return (shifted(1) - shifted(-1)).div_(2.0 * cell)


def cell_divergence(v: Tensor, differentiate: Differentiate) -> Tensor:
    """Return the divergence of a vector field ``(..., 3, nx, ny, nz)``, by differences.

    Parameters
    ----------
    v : Tensor
        Real vector field.
    differentiate : callable
        :func:`difference` for a whole cube, or :func:`inner_difference` for a block with a halo.
    """
    _require_vector(v)
    x, y, z = v.unbind(-4)
    return differentiate(x, -3).add_(differentiate(y, -2)).add_(differentiate(z, -1))


def cell_curl(v: Tensor, differentiate: Differentiate) -> Tensor:
    """Return the curl of a vector field by differences; see :func:`cell_divergence`."""
    _require_vector(v)
    parts = v.unbind(-4)
    result = torch.empty(0)
    for i, j, k in _CYCLIC:
        part = differentiate(parts[k], j - 3).sub_(differentiate(parts[j], k - 3))
        if i == 0:
            result = part.new_empty((*v.shape[:-3], *part.shape[-3:]))
        result.select(-4, i).copy_(part)
    return result


def odd_wavenumbers(modes: Tensor, box_size: float) -> Waves:
    """Return the wavenumbers of all modes of a box, h/Mpc, Nyquist set to zero."""
    return fourier.wavenumbers(
        modes.shape[-3], box_size, odd=True, dtype=modes.real.dtype, device=modes.device
    )


def divergence_modes(modes: Tensor, waves: Waves) -> Tensor:
    """Return the modes of the divergence from those of a vector field.

    Parameters
    ----------
    modes : Tensor
        All modes or a block of them, shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    waves : (Tensor, Tensor, Tensor)
        Wavenumbers of these modes along each axis, Nyquist set to zero.

    Returns
    -------
    Tensor
        Shape ``(..., n, n, n // 2 + 1)``, complex, field unit per Mpc/h.
    """
    kx, ky, kz = waves
    x, y, z = modes.unbind(-4)
    return (kx * x).add_(ky * y).add_(kz * z).mul_(1j)


def potential_part(modes: Tensor, box_size: float) -> Tensor:
    """Return the modes of the potential part of a vector field, ``k (k.v) / k^2``.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Box size, Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit; the rest of the field has no
        divergence.
    """
    _require_vector(modes)
    ks = odd_wavenumbers(modes, box_size)
    square = ks[0] ** 2 + ks[1] ** 2 + ks[2] ** 2
    # The mean and Nyquist waves, for which the sign of k is undefined, have no potential.
    square[square == 0.0] = torch.inf
    along = divergence_modes(modes, ks).mul_(-1j).div_(square)
    return torch.stack([along * k for k in ks], dim=-4)


def curl_modes(modes: Tensor, waves: Waves) -> Tensor:
    """Return the modes of the curl, of the same shape; see :func:`divergence_modes`."""
    parts = modes.unbind(-4)
    result = torch.empty_like(modes)
    for i, j, k in _CYCLIC:
        result.select(-4, i).copy_((waves[j] * parts[k]).sub_(waves[k] * parts[j]).mul_(1j))
    return result
