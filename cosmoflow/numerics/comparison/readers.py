"""Readers of the compared fields, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.blocks import Block, cut_block
from cosmoflow.numerics.calibration import Intervals

Array = NDArray[np.float32]
Json = dict[str, Any]

TRUTH: Final = "truth"
"""Name of the first reader in :data:`Readers`."""


class FieldReader(Protocol):
    """The density and one method's velocity of a periodic box."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    @property
    def box_size(self) -> float:
        """Box size, Mpc/h."""

    @property
    def particles_per_cell(self) -> float | None:
        """Number of particles in a cell of mean density; None if the density does not tell it."""

    @property
    def intervals(self) -> Intervals | None:
        """Intervals of the expected errors; None if there is no ``velocity_std``."""

    def read(self, name: str, block: Block) -> Array:
        """Return a field over a block.

        ``density`` has the shape (nx, ny, nz), ``velocity`` and its expected error
        ``velocity_std`` (3, nx, ny, nz), km/s. The block wraps if it extends past the grid.

        Raises
        ------
        DataError
            The field is damaged or contains values that are not finite.
        """


Readers = Mapping[str, FieldReader]
"""Readers by name for one box: :data:`TRUTH` first, then the methods."""


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Fields in memory.

    Parameters
    ----------
    density : ndarray
        Shape ``(n, n, n)``, float32, over its mean.
    velocity : ndarray
        Shape ``(3, n, n, n)``, float32, km/s.
    box_size : float
        Box size, Mpc/h.
    velocity_std : ndarray, optional
        Expected size of the error of each component, shaped like ``velocity``.
    intervals : (float, float), optional
        See :class:`FieldReader`.
    particles_per_cell : float, optional
        See :class:`FieldReader`.
    """

    density: Array
    velocity: Array
    box_size: float
    velocity_std: Array | None = None
    intervals: Intervals | None = None
    particles_per_cell: float | None = None

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return int(self.density.shape[-1])

    def read(self, name: str, block: Block) -> Array:
        """Return a block of a field; see :class:`FieldReader`."""
        # A copy, as of a store: the caller may write into the block.
        return cut_block(getattr(self, name), block)


def read_tensor(reader: FieldReader, name: str, block: Block) -> Tensor:
    """Return a block of a field as a tensor that shares memory with the reader's array."""
    return torch.from_numpy(reader.read(name, block))
