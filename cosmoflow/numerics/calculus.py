"""Gradient, divergence and curl of fields in a periodic cube or in a cube cut out of one.

Two rules. ``spectral`` multiplies the modes of a periodic field by ``i k``, exact for every wave
that the grid holds, the Nyquist wave set to zero because the sign of its derivative is undefined.
``difference`` is second-order central differences, as the paper uses them: around the corner in a
periodic box, one-sided at the faces of a cut-out cube, as :func:`numpy.gradient` has it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cosmoflow.numerics import fourier

Method = Literal["spectral", "difference"]

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


def _odd_wavenumbers(modes: Tensor, box_size: float) -> tuple[Tensor, Tensor, Tensor]:
    return fourier.wavenumbers(
        modes.shape[-3], box_size, odd=True, dtype=modes.real.dtype, device=modes.device
    )


def divergence_modes(modes: Tensor, box_size: float) -> Tensor:
    """Return the modes of the divergence from those of a vector field.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(..., n, n, n // 2 + 1)``, complex, field unit per Mpc/h.
    """
    kx, ky, kz = _odd_wavenumbers(modes, box_size)
    x, y, z = modes.unbind(-4)
    return (kx * x).add_(ky * y).add_(kz * z).mul_(1j)


def curl_modes(modes: Tensor, box_size: float) -> Tensor:
    """Return the modes of the curl from those of a vector field.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., 3, n, n, n // 2 + 1)``, complex, field unit.
    box_size : float
        Mpc/h.

    Returns
    -------
    Tensor
        The same shape, field unit per Mpc/h.
    """
    ks = _odd_wavenumbers(modes, box_size)
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
    parts = v.unbind(-4)
    result = _difference(parts[0], -3, box_size / cells, periodic)
    for axis, part in zip((-2, -1), parts[1:], strict=True):
        result = result.add_(_difference(part, axis, box_size / cells, periodic))
    return result


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
    cell = box_size / cells
    parts = v.unbind(-4)
    result = torch.empty_like(v)
    for i, j, k in _CYCLIC:
        part = _difference(parts[k], j - 3, cell, periodic)
        result.select(-4, i).copy_(part.sub_(_difference(parts[j], k - 3, cell, periodic)))
    return result
