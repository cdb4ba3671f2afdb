"""Wavenumbers of a block of modes, whatever the order of its axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier

Integers = NDArray[np.int64]

BOX_AXES = (0, 1, 2)
"""Modes of a box in memory have the axes kx, ky, kz."""
SLAB_AXES = (2, 0, 1)
"""Modes of a slab have the axes kz, kx, ky: a plane of them is contiguous."""


@dataclass(frozen=True, slots=True)
class WaveBlock:
    """A block of the half-complex transform ``(n, n, n // 2 + 1)`` of a periodic cube.

    Parameters
    ----------
    cells : int
        Cells per axis of the grid.
    box_size : float
        Side of the box, Mpc/h.
    start, shape : (int, int, int)
        First mode, and number of modes, along kx, ky and kz.
    axes : (int, int, int)
        Which of kx, ky and kz is each axis of the arrays of modes.
    """

    cells: int
    box_size: float
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    axes: tuple[int, int, int] = BOX_AXES

    @classmethod
    def box(cls, cells: int, box_size: float) -> Self:
        """Return all modes of a box in memory."""
        return cls(cells, box_size, (0, 0, 0), (cells, cells, cells // 2 + 1))

    @classmethod
    def slab(cls, cells: int, box_size: float, planes: slice) -> Self:
        """Return the modes of a slab: some planes along kz."""
        shape = (cells, cells, planes.stop - planes.start)
        return cls(cells, box_size, (0, 0, planes.start), shape, SLAB_AXES)

    def part(self, own: slice) -> WaveBlock:
        """Return a range of the first axis of the arrays, counted from the start of the block."""
        start, shape = list(self.start), list(self.shape)
        start[self.axes[0]] += own.start
        shape[self.axes[0]] = own.stop - own.start
        (x, y, z), (nx, ny, nz) = start, shape
        return replace(self, start=(x, y, z), shape=(nx, ny, nz))

    def odd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return kx, ky and kz with Nyquist frequencies set to zero, shaped to broadcast."""
        return self._waves(odd=True)

    def squared(self) -> Tensor:
        """Return ``k^2``, (h/Mpc)^2."""
        kx, ky, kz = self._waves()
        return kx**2 + ky**2 + kz**2

    def inverse_squared(self) -> Tensor:
        """Return ``1 / k^2``, and 0 for the mean, which has no potential."""
        squared = self.squared()
        if not any(self.start):
            squared[0, 0, 0] = torch.inf
        return squared.reciprocal_()

    def _waves(self, *, odd: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for axis, waves in enumerate(fourier.wavenumbers(self.cells, self.box_size, odd=odd)):
            shape = [1, 1, 1]
            shape[self.axes.index(axis)] = -1
            own = slice(self.start[axis], self.start[axis] + self.shape[axis])
            found.append(waves.flatten()[own].view(shape))
        kx, ky, kz = found
        return kx, ky, kz

    def integers(self) -> tuple[Integers, Integers, Integers]:
        """Return the integer wavevectors along each axis of the arrays."""
        first, second, third = (self._integers(axis) for axis in self.axes)
        return first, second, third

    def _integers(self, axis: int) -> Integers:
        m = np.arange(self.start[axis], self.start[axis] + self.shape[axis], dtype=np.int64)
        return m if axis == 2 else np.where(2 * m >= self.cells, m - self.cells, m)
