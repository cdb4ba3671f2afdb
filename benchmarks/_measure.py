"""What the benchmarks share: particles, initial displacements, and the spectra of a snapshot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import calculus, cola, fourier, initial, lpt, mesh, spectra
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import Piece, paint_block

VELOCITY_CELL = 2.0
"""Side of the cells, Mpc/h, on which velocity is momentum over density, as in the paper; no less
than two particle spacings though, since an empty cell has no velocity."""
CHUNK = 1 << 20
"""Particles that are painted at once."""
VELOCITY = 53.0
"""km/s per Mpc/h of displacement at z = 0, for particles that are only to be painted."""


def rms(vectors: NDArray[np.float32]) -> float:
    """Return the 3-D rms of a vector field, shape ``(3, n, n, n)``."""
    return float(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=0).mean()))


def make_particles(
    per_axis: int, box_size: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return 2LPT positions and velocities, (n, 3), in Lagrangian order."""
    power = LinearPower.from_cosmology(CosmologyConfig())
    modes = initial.linear_density_modes(initial.white_noise_modes(per_axis, 1), box_size, power)
    psi1, psi2 = lpt.displacements(modes, box_size)
    position = lpt.lattice_positions(per_axis, box_size) + psi1 - 3.0 / 7.0 * psi2
    x = position.remainder_(box_size).numpy()
    x[x >= np.float32(box_size)] = 0.0
    return x, (VELOCITY * psi1).numpy()


def displacements(
    cells: int, box_size: float, power: LinearPower, seed: int = 1, **options: bool
) -> tuple[Tensor, Tensor, spectra.Spectrum]:
    """Return both orders of displacement and the linear spectrum of this very realisation.

    Parameters
    ----------
    cells : int
        Particles per axis.
    box_size : float
        Mpc/h.
    power : LinearPower
    seed : int
    **options
        ``fixed_amplitude`` and ``inverted`` of ``initial.linear_density_modes``.
    """
    noise = initial.white_noise_modes(cells, seed)
    modes = initial.linear_density_modes(noise, box_size, power, **options)
    linear = spectra.sum_modes(modes, cells=cells, box_size=box_size).spectrum()
    psi1, psi2 = lpt.displacements(modes, box_size)
    return psi1, psi2, linear


def density_power(snapshot: cola.Snapshot, cells: int) -> spectra.Spectrum:
    """Return ``P_delta`` of a cloud-in-cell density, its window undone, no noise subtracted."""
    contrast = mesh.paint_contrast(snapshot.displaced, snapshot.box_size, cells)
    return spectra.auto_power(contrast, snapshot.box_size, window=2)


def paint_flow(snapshot: cola.Snapshot) -> dict[str, NDArray[np.float32]]:
    """Paint density, momentum and velocity on cells of ``VELOCITY_CELL``, cloud-in-cell."""
    side = max(VELOCITY_CELL, 2.0 * snapshot.box_size / round(math.cbrt(snapshot.count)))
    cells = 2 * round(snapshot.box_size / side / 2.0)
    pieces: list[Piece] = []
    for start in range(0, snapshot.count, CHUNK):
        position, velocity = snapshot.rows(start, min(start + CHUNK, snapshot.count))
        pieces.append((position.numpy(), velocity.numpy(), None))
    # The mean velocity of the box, which empty cells get, is zero.
    whole = Block((0, 0, 0), (cells,) * 3)
    return paint_block(pieces, whole, cells, snapshot.box_size, count=snapshot.count)


def divergence(v: torch.Tensor, box_size: float) -> torch.Tensor:
    """Return the divergence of a periodic vector field ``(3, n, n, n)``."""
    modes = fourier.forward(v)
    waves = calculus.odd_wavenumbers(modes, box_size)
    return fourier.inverse(calculus.divergence_modes(modes, waves), v.shape[-1])


def flow_powers(snapshot: cola.Snapshot, *, window: int = 0) -> dict[str, spectra.Spectrum]:
    """Return the spectra of the flow on cells of ``VELOCITY_CELL``.

    ``theta`` is the divergence of v = p / rho, ``p`` the scalar ``|v| delta`` of the paper's
    tables, ``p vector`` the momentum ``rho v`` itself, ``div p`` its divergence. A ``window`` of 2
    undoes the painting's, which for v holds at low k only.
    """
    painted, box_size = paint_flow(snapshot), snapshot.box_size
    density, velocity, momentum = (
        torch.from_numpy(f) for f in (painted["density"], painted["velocity"], painted["momentum"])
    )
    fields: dict[str, Any] = {
        "theta": divergence(velocity, box_size),
        "p": velocity.norm(dim=0) * (density - 1.0),
        "p vector": momentum,
        "div p": divergence(momentum, box_size),
    }
    return {
        name: spectra.auto_power(field, box_size, window=window) for name, field in fields.items()
    }
