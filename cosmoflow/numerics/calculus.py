"""Gradient, divergence and curl of fields in a periodic cube or in a cube cut out of one.

Two rules. ``spectral`` multiplies the modes of a periodic field by ``i k``, exact for every wave
that the grid holds, the Nyquist wave set to zero because the sign of its derivative is undefined.
``difference`` is second-order central differences, as the paper uses them: around the corner in a
periodic box, one-sided at the faces of a cut-out cube, as :func:`numpy.gradient` has it. A block
that comes with a halo of one cell has both neighbours of every cell, and so the very differences of
the box that it was cut from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cosmoflow.numerics import fourier

Method = Literal["spectral", "difference"]

Differentiate = Callable[[Tensor, int], Tensor]
"""From a field ``(..., nx, ny, nz)`` and an axis, -3, -2 or -1, to a new tensor."""

Waves = tuple[Tensor, Tensor, Tensor]
"""Wavenumbers along x, y and z, h/Mpc, shaped to broadcast over modes."""

# curl_i = d_j v_k - d_k v_j, for the even permutations (i, j, k).
_CYCLIC = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def _require_vector(field: Tensor) -> None:
    if field.dim() < 4 or field.shape[-4] != 3:
        raise ValueError(f"a vector field has shape (..., 3, n, n, n), not {tuple(field.shape)}")


def _require_periodic(method: Method, periodic: bool) -> None:
    if method == "spectral" and not periodic:
        raise ValueError("spectral derivatives need a periodic field: use method='difference'")


def _difference(field: Tensor, axis: int, cell: float, periodic: bool) -> Tensor:
    """Differentiate ``(..., n, n, n)`` along ``axis``, one of -3, -2 and -1."""
    if periodic:
        return (torch.roll(field, -1, axis) - torch.roll(field, 1, axis)) / (2.0 * cell)
    return torch.gradient(field, spacing=cell, dim=axis)[0]


def inner_difference(field: Tensor, axis: int, cell: float) -> Tensor:
    """Differentiate a block that has a halo of one cell, where its own cells are.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., nx + 2, ny + 2, nz + 2)``.
    axis : int
        -3, -2 or -1.
    cell : float
        Side of a cell, Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(..., nx, ny, nz)``, field unit per Mpc/h: to the last bit what the whole periodic
        box gives for these cells.
    """

    def shifted(step: int) -> Tensor:
        part = field
        for other in fourier.AXES:
            first = 1 + step * (other == axis)
            part = part.narrow(other, first, field.shape[other] - 2)
        return part

    return (shifted(1) - shifted(-1)).div_(2.0 * cell)


def _add_slopes(v: Tensor, differentiate: Differentiate) -> Tensor:
    """Return ``d_x v_x + d_y v_y + d_z v_z``."""
    x, y, z = v.unbind(-4)
    return differentiate(x, -3).add_(differentiate(y, -2)).add_(differentiate(z, -1))


def _fill_curl(v: Tensor, differentiate: Differentiate, result: Tensor) -> Tensor:
    """Write the curl of ``v`` into ``result`` and return it."""
    parts = v.unbind(-4)
    for i, j, k in _CYCLIC:
        part = differentiate(parts[k], j - 3)
        result.select(-4, i).copy_(part.sub_(differentiate(parts[j], k - 3)))
    return result


def inner_divergence(v: Tensor, cell: float) -> Tensor:
    """Return the divergence in a block that has a halo of one cell, by differences.

    Parameters
    ----------
    v : Tensor
        Shape ``(3, nx + 2, ny + 2, nz + 2)``, real.
    cell : float
        Side of a cell, Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(nx, ny, nz)``, the unit of ``v`` per Mpc/h.
    """
    _require_vector(v)
    return _add_slopes(v, partial(inner_difference, cell=cell))


def inner_curl(v: Tensor, cell: float) -> Tensor:
    """Return the curl in a block that has a halo of one cell, by differences.

    Parameters
    ----------
    v : Tensor
        Shape ``(3, nx + 2, ny + 2, nz + 2)``, real.
    cell : float
        Side of a cell, Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(3, nx, ny, nz)``, the unit of ``v`` per Mpc/h.
    """
    _require_vector(v)
    result = v.new_empty((*v.shape[:-3], *(cells - 2 for cells in v.shape[-3:])))
    return _fill_curl(v, partial(inner_difference, cell=cell), result)


def _odd_wavenumbers(modes: Tensor, box_size: float) -> tuple[Tensor, Tensor, Tensor]:
    return fourier.wavenumbers(
        modes.shape[-3], box_size, odd=True, dtype=modes.real.dtype, device=modes.device
    )


def divergence_modes(modes: Tensor, box_size: float, waves: Waves | None = None) -> Tensor:
    """Return the modes of the divergence from those of a vector field.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Mpc/h.
    waves : (Tensor, Tensor, Tensor), optional
        The modes' wavenumbers along each axis, Nyquist set to zero, shaped to broadcast over them:
        where the modes are a block of the transform, not all of it.

    Returns
    -------
    Tensor
        Shape ``(..., n, n, n // 2 + 1)``, complex, field unit per Mpc/h.
    """
    kx, ky, kz = waves or _odd_wavenumbers(modes, box_size)
    x, y, z = modes.unbind(-4)
    return (kx * x).add_(ky * y).add_(kz * z).mul_(1j)


def potential_part(modes: Tensor, box_size: float) -> Tensor:
    """Return the modes of the part of a vector field that has a potential, ``k (k.v) / k^2``.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit; what is left of the field has no
        divergence.
    """
    _require_vector(modes)
    ks = _odd_wavenumbers(modes, box_size)
    square = ks[0] ** 2 + ks[1] ** 2 + ks[2] ** 2
    # The mean has no potential, nor have Nyquist waves, whose sign of k is undefined.
    square[square == 0.0] = torch.inf
    along = divergence_modes(modes, box_size).mul_(-1j).div_(square)
    return torch.stack([along * k for k in ks], dim=-4)


def curl_modes(modes: Tensor, box_size: float, waves: Waves | None = None) -> Tensor:
    """Return the modes of the curl from those of a vector field.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Mpc/h.
    waves : (Tensor, Tensor, Tensor), optional
        As :func:`divergence_modes` takes them.

    Returns
    -------
    Tensor
        The same shape, field unit per Mpc/h.
    """
    ks = waves or _odd_wavenumbers(modes, box_size)
    parts = modes.unbind(-4)
    result = torch.empty_like(modes)
    for i, j, k in _CYCLIC:
        result.select(-4, i).copy_((ks[j] * parts[k]).sub_(ks[k] * parts[j]).mul_(1j))
    return result


def gradient(
    field: Tensor, box_size: float, method: Method = "spectral", *, periodic: bool = True
) -> Tensor:
    """Return the gradient of a scalar field.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., n, n, n)``, real.
    box_size : float
        Side of the cube that ``field`` covers, Mpc/h.
    method : {'spectral', 'difference'}
        The rule for derivatives.
    periodic : bool
        False for a cube cut out of a larger box; differences only.

    Returns
    -------
    Tensor
        Shape ``(..., 3, n, n, n)``, field unit per Mpc/h.
    """
    _require_periodic(method, periodic)
    cells = field.shape[-1]
    if method == "difference":
        cell = box_size / cells
        return torch.stack([_difference(field, a, cell, periodic) for a in fourier.AXES], dim=-4)
    modes = fourier.forward(field)
    ks = _odd_wavenumbers(modes, box_size)
    return torch.stack([fourier.inverse(modes * k * 1j, cells) for k in ks], dim=-4)


def divergence(
    v: Tensor, box_size: float, method: Method = "spectral", *, periodic: bool = True
) -> Tensor:
    """Return the divergence of a vector field.

    Parameters
    ----------
    v : Tensor
        Shape ``(..., 3, n, n, n)``, real, of any floating dtype.
    box_size : float
        Side of the cube that ``v`` covers, Mpc/h.
    method : {'spectral', 'difference'}
        The rule for derivatives.
    periodic : bool
        False for a cube cut out of a larger box; differences only.

    Returns
    -------
    Tensor
        Shape ``(..., n, n, n)``, the dtype of ``v``, its unit per Mpc/h.
    """
    _require_vector(v)
    _require_periodic(method, periodic)
    cells = v.shape[-1]
    if method == "spectral":
        return fourier.inverse(divergence_modes(fourier.forward(v), box_size), cells)
    return _add_slopes(v, partial(_difference, cell=box_size / cells, periodic=periodic))


def curl(
    v: Tensor, box_size: float, method: Method = "spectral", *, periodic: bool = True
) -> Tensor:
    """Return the curl of a vector field.

    Parameters
    ----------
    v : Tensor
        Shape ``(..., 3, n, n, n)``, real, of any floating dtype.
    box_size : float
        Side of the cube that ``v`` covers, Mpc/h.
    method : {'spectral', 'difference'}
        The rule for derivatives.
    periodic : bool
        False for a cube cut out of a larger box; differences only.

    Returns
    -------
    Tensor
        The shape and dtype of ``v``, its unit per Mpc/h.
    """
    _require_vector(v)
    _require_periodic(method, periodic)
    cells = v.shape[-1]
    if method == "spectral":
        return fourier.inverse(curl_modes(fourier.forward(v), box_size), cells)
    differentiate = partial(_difference, cell=box_size / cells, periodic=periodic)
    return _fill_curl(v, differentiate, torch.empty_like(v))
