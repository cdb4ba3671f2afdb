"""Lagrangian perturbation theory: the displacements of a lattice to second order."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmoflow.numerics import fourier


def lattice_positions(cells: int, box_size: float, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the lattice ``q = (i + 1/2) L / N`` in C order, shape ``(N^3, 3)``, float32, Mpc/h."""
    positions = fourier.empty((cells**3, 3), device=device)
    line = ((torch.arange(cells, dtype=torch.float64) + 0.5) * (box_size / cells)).to(
        dtype=torch.float32, device=device
    )
    grid = positions.view(cells, cells, cells, 3)
    grid[..., 0] = line.view(-1, 1, 1)
    grid[..., 1] = line.view(1, -1, 1)
    grid[..., 2] = line.view(1, 1, -1)
    return positions


def displacements(modes: Tensor, box_size: float) -> tuple[Tensor, Tensor]:
    r"""Return the first- and second-order displacements of a lattice of particles.

    Parameters
    ----------
    modes : Tensor
        Shape ``(N, N, N // 2 + 1)``, complex64: modes of the linear density contrast today.
        **Overwritten.**
    box_size : float
        Box size, Mpc/h.

    Returns
    -------
    psi1, psi2 : Tensor
        Shape ``(N^3, 3)``, float32, Mpc/h, in C order of the lattice: positions are
        ``x = q + D1 psi1 + D2 psi2``.

    Notes
    -----
    ``psi1 = -grad phi1`` with ``lap phi1 = delta`` and ``psi2 = +grad phi2`` with
    ``lap phi2 = sum_{i>j} (phi1,ii phi1,jj - phi1,ij^2)``; the products are not dealiased, as in
    the usual codes. At most five grids of ``4 N^3`` bytes are in memory besides the results.

    References
    ----------
    Bouchet et al. 1995 (astro-ph/9406013); Scoccimarro 1998 (astro-ph/9711187), appendix D.
    """
    source = _second_order_source(modes, box_size)
    psi1 = _gradient_columns(modes, box_size, +1.0)
    return psi1, _gradient_columns(source, box_size, -1.0)


def _second_order_source(modes: Tensor, box_size: float) -> Tensor:
    """Return the Laplacian of phi2 on the lattice, shape ``(N, N, N)``, float32."""
    shape = (modes.shape[0],) * 3
    diagonal, source = (fourier.empty(shape, device=modes.device) for _ in range(2))
    for (i, j), tide in fourier.tidal_components(modes, box_size):
        if i != j:
            source.addcmul_(tide, tide, value=-1.0)
        elif i == 1:
            diagonal.copy_(tide)
        elif i == 2:
            torch.mul(diagonal, tide, out=source)
            diagonal += tide
        else:
            source.addcmul_(diagonal, tide)
    return source


def _gradient_columns(source: Tensor, box_size: float, sign: float) -> Tensor:
    """Return ``sign`` times the inverse gradient of a field (overwritten), shape ``(N^3, 3)``."""
    columns = fourier.empty((source.shape[0] ** 3, 3), device=source.device)
    for axis, field in fourier.inverse_gradient(source, box_size):
        torch.mul(field.view(-1), sign, out=columns[:, axis])
    return columns
