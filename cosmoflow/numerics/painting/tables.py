"""Tables of the tiles of cells that a particle's cloud touches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmoflow.numerics.compiled import compiled

MARGIN: Final = 4
"""Cells beyond both ends of an axis that tables cover: few clouds begin further out."""
SEVERAL: Final = 1 << 29
"""Marks a first cell whose cloud does not touch just one tile; three of them can be added."""
CLASS_BITS: Final = 20
"""Bits of the number of a class along one axis."""
BATCH: Final = 512
"""Particles whose cells are computed at once in a vectorised loop."""


class TouchTables:
    """Tiles that a cloud touches, looked up by its first cell, axis by axis.

    Parameters
    ----------
    edges : sequence of (k + 1,) int64
        Starts of the tiles along every axis and the end of the last one, in cells from ``origin``.
    origin : sequence of int
        First cell of the first tile, per axis.
    cells : int
        Cells per axis of the periodic grid.
    order : int
        Cells per axis of a cloud.

    Notes
    -----
    Tiles are numbered in C order. A table entry is the contribution of one axis to that number: a
    tile is the sum of three entries. ``single``, (3, slots), has the entries of clouds that touch
    just one tile; ``touched``, (3, width, slots), lists all tiles touched along an axis, then -1.
    Clouds that touch the same tiles belong to one class, given by the sum of three entries of
    ``classes``, (3, slots), with CLASS_BITS for each axis.
    """

    def __init__(
        self, edges: Sequence[NDArray[np.int64]], origin: Sequence[int], cells: int, order: int
    ) -> None:
        tiles = [len(e) - 1 for e in edges]
        self.cells = cells
        self.count = tiles[0] * tiles[1] * tiles[2]
        factors = (tiles[1] * tiles[2], tiles[2], 1)
        lists = [_touched_tiles(e, o, cells, order) for e, o in zip(edges, origin, strict=True)]
        width = max(1, *(int((table >= 0).sum(axis=0).max()) for table in lists))
        self.touched: NDArray[np.int32] = np.stack(
            [np.where(t >= 0, t * f, -1)[:width] for t, f in zip(lists, factors, strict=True)]
        ).astype(np.int32)
        alone = (self.touched >= 0).sum(axis=1) == 1
        self.single: NDArray[np.int32] = np.where(alone, self.touched[:, 0], SEVERAL).astype(
            np.int32
        )
        columns = [np.unique(t, axis=1, return_inverse=True) for t in self.touched]
        shifts = (2 * CLASS_BITS, CLASS_BITS, 0)
        self.classes: NDArray[np.int64] = np.stack(
            [index.reshape(-1) << bits for (_, index), bits in zip(columns, shifts, strict=True)]
        )
        # The first slot of every class, to look up its tiles.
        self.samples = tuple(
            np.unique(index.reshape(-1), return_index=True)[1] for _, index in columns
        )


def _touched_tiles(
    edges: NDArray[np.int64], origin: int, cells: int, order: int
) -> NDArray[np.int64]:
    """List the tiles along an axis that a cloud touches, then -1, by first cell from -MARGIN."""
    first = np.arange(-MARGIN, cells + MARGIN)
    place = (first + np.arange(order)[:, None] - origin) % cells
    tile = np.searchsorted(edges, place, side="right") - 1
    tile[place >= edges[-1]] = -1
    for later in range(1, order):
        tile[later, (tile[:later] == tile[later]).any(axis=0)] = -1
    return np.take_along_axis(tile, np.argsort(tile < 0, axis=0, kind="stable"), axis=0)


@njit(inline="always")
def slot(first, cells, size):  # type: ignore[no-untyped-def]
    """Return the table index of a first cell; the modulus keeps any value in range."""
    slot = np.int64(first) + MARGIN
    if np.uint64(slot) >= np.uint64(size):
        slot = np.int64(first) % cells + MARGIN
    return np.uint64(slot)


@compiled()
def first_cells(x, scale, offset, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the first cells of clouds for a flat array of coordinates."""
    for k in range(x.shape[0]):
        out[k] = np.int32(np.floor(x[k] * scale + offset))
