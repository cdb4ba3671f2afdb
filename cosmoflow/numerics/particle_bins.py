"""Residual velocities by the number of particles on which the true velocity of a cell rests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.exact_sums import (
    add_exactly,
    empty_tallies,
    sum_tallies,
)

PARTICLES: Final = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Lower ends of the bins; the first holds the cells without particles, the last is open."""
_BINS: Final = len(PARTICLES)
_ROUNDED: Final = 1.0 + 1e-6
"""Factor for the rounding of float32: whole numbers of particles are in the bin above their end."""


@dataclass(frozen=True, eq=False)
class ParticleBinSum:
    """Exact sums over the cells of each bin, which do not depend on the order.

    Attributes
    ----------
    particles_per_cell : float
        Number of particles in a cell of mean density.
    cells : ndarray
        Shape ``(7,)``, int64: number of cells.
    squares : ndarray of ExactSum
        Shape ``(2, 7)``: squared true velocity and squared residual, km/s squared.
    """

    particles_per_cell: float
    cells: NDArray[np.int64]
    squares: NDArray[np.object_]

    def __add__(self, other: ParticleBinSum) -> ParticleBinSum:
        return replace(self, cells=self.cells + other.cells, squares=self.squares + other.squares)

    def shared(self) -> dict[str, Any]:
        """Return what is the same for all methods; the true rms is in km/s."""
        return {
            "particles_per_cell": self.particles_per_cell,
            "particles": PARTICLES,
            "cells": self.cells.tolist(),
            "truth": self._rms(0),
        }

    def figures(self) -> dict[str, Any]:
        """Return the rms of the residual, km/s, and each bin's share of the squared residual."""
        total = float(self.squares[1].sum())
        share = np.full(_BINS, np.nan)
        if total > 0.0:
            share = self.squares[1].astype(np.float64) / total
        return {"residual": self._rms(1), "share": share}

    def _rms(self, row: int) -> NDArray[np.float64]:
        means = np.full(_BINS, np.nan)
        np.divide(self.squares[row].astype(np.float64), self.cells, means, where=self.cells > 0)
        rms: NDArray[np.float64] = np.sqrt(means)
        return rms


def sum_by_particles(
    density: Tensor, truth: Tensor, prediction: Tensor, particles_per_cell: float
) -> ParticleBinSum:
    """Sum squared velocities of a block by the number of particles in a cell.

    Parameters
    ----------
    density : Tensor
        Shape ``(mx, my, mz)``, float32, density over its mean.
    truth, prediction : Tensor
        Shape ``(3, mx, my, mz)``, float32, km/s.
    particles_per_cell : float
        Number of particles in a cell of mean density.
    """
    cells, tallies = np.zeros(_BINS, np.int64), empty_tallies(2, _BINS)
    fields = (field.cpu().numpy() for field in (density, truth, prediction))
    _add_cells(*fields, particles_per_cell * _ROUNDED, cells, tallies)
    return ParticleBinSum(particles_per_cell, cells, sum_tallies(tallies))


@compiled()
def _add_cells(density, truth, prediction, particles, cells, tallies):  # type: ignore[no-untyped-def]
    nx, ny, nz = density.shape
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                number = np.float64(density[i, j, k]) * particles
                place, end = 0, 1.0
                if number > 0.0:
                    place = 1
                    while place < _BINS - 1 and number >= end:
                        place += 1
                        end *= 2.0
                truth2 = residual2 = 0.0
                for c in range(3):
                    v, w = np.float64(truth[c, i, j, k]), np.float64(prediction[c, i, j, k])
                    truth2 += v * v
                    residual2 += (w - v) * (w - v)
                cells[place] += 1
                add_exactly(truth2, tallies[0, place])
                add_exactly(residual2, tallies[1, place])
