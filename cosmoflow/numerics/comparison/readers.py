"""Where the fields that are compared come from, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.blocks import Block, read_periodic

Array = NDArray[np.float32]
Json = dict[str, Any]

TRUTH: Final = "truth"
"""The name of the first of :data:`Readers`."""


class FieldReader(Protocol):
    """The density, and one method's velocity, of a periodic box."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    @property
    def box_size(self) -> float:
        """Mpc/h."""

    @property
    def shard(self) -> int:
        """Cells per axis that are best read at once."""

    def read(self, name: str, block: Block) -> Array:
        """Return ``density``, shape (nx, ny, nz), or ``velocity``, shape (3, nx, ny, nz), km/s.

        The block may reach past the grid: it wraps.

        Raises
        ------
        DataError
            The field is damaged or holds values that are not finite.
        """


Readers = Mapping[str, FieldReader]
"""The truth's, by the name :data:`TRUTH`, then those of the methods, all of one box."""


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
        Mpc/h.
    """

    density: Array
    velocity: Array
    box_size: float

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return int(self.density.shape[-1])

    @property
    def shard(self) -> int:
        """Cells per axis that are best read at once."""
        return self.grid

    def read(self, name: str, block: Block) -> Array:
        """Return a block of a field; see :class:`FieldReader`."""
        field = self.density if name == "density" else self.velocity

        def read(part: tuple[slice, ...]) -> Array:
            # A copy, as a store returns one: whoever reads a block may write into it.
            x, y, z = part
            return field[..., x, y, z].copy()

        return read_periodic(read, field.shape[:-3], block, self.grid)


def read_tensor(reader: FieldReader, name: str, block: Block) -> Tensor:
    """Return a block of a field as a tensor, on the memory of what the reader returned."""
    return torch.from_numpy(reader.read(name, block))


def whole_box(reader: FieldReader) -> Block:
    """Return the block of all cells."""
    return Block((0, 0, 0), (reader.grid, reader.grid, reader.grid))
