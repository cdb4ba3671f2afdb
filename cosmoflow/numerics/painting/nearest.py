"""The velocity of the nearest particle, for cells without mass.

Every empty cell takes the velocity of the particle nearest to its centre. The choice depends on the
particles alone: distances are computed from the coordinates in the box, and a tie goes to the
particle with the smaller coordinates, then to the one with the smaller velocity. To the last bit
the field therefore does not depend on the order of the particles, their pieces, the shards of the
grid or the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.painting.batches import batch_size, cut_batches
from cosmoflow.numerics.painting.blocks import Piece, flat_rows, run_threads
from cosmoflow.numerics.painting.shares import LEAST_MASS, MASS_UNITS

FILL_REACH: Final = 4.0
"""Search radius for the nearest particle, in mean separations of the particles."""
_LEAST_REACH: Final = 3
"""Minimum search radius in cells, at least the reach of the clouds of any scheme."""
_SEARCH: Final = 1 << 12
"""Empty cells that one thread processes at a time."""


def fill_reach(cells: int, count: int) -> int:
    """Return the search radius for the nearest particle, in cells.

    Parameters
    ----------
    cells : int
        Cells per axis of the grid.
    count : int
        Particles in the box.
    """
    reach = math.ceil(FILL_REACH * cells / math.cbrt(count))
    # No two points of a periodic box are farther from each other than half its diagonal.
    return min(max(reach, _LEAST_REACH), math.ceil(math.sqrt(0.75) * cells))


def lacks_velocity(density: NDArray[np.float32], cells: int, count: int) -> NDArray[np.bool_]:
    """Return which cells have too little mass to define a velocity.

    Parameters
    ----------
    density : (nx, ny, nz) float32
        Painted density over its mean.
    cells : int
        Cells per axis of the grid.
    count : int
        Particles in the box.
    """
    # The painted value of the minimum mass, rounded as the kernel rounds it.
    least = np.float32(LEAST_MASS * (cells**3 / count / MASS_UNITS))
    lacking: NDArray[np.bool_] = density < least
    return lacking


def fill_velocity(
    velocity: NDArray[np.float32],
    density: NDArray[np.float32],
    pieces: Iterable[Piece],
    block: Block,
    cells: int,
    box_size: float,
    *,
    count: int,
    batch: int | None = None,
) -> int:
    """Fill cells of a block that lack a velocity with that of the nearest particle, in place.

    Parameters
    ----------
    velocity : (3, nx, ny, nz) float32
        Painted velocity, km/s, contiguous.
    density : (nx, ny, nz) float32
        Painted density over its mean.
    pieces : iterable of Piece
        Positions, (n, 3) float32, comoving Mpc/h in [0, box), with their velocities and masses:
        all particles within :func:`fill_reach` cells of the block, and any others. Particles of
        mass 0 are ignored.
    block : Block
        The cells.
    cells : int
        Cells per axis of the whole periodic grid.
    box_size : float
        Box size, Mpc/h.
    count : int
        Particles in the whole box.
    batch : int, optional
        Maximum particles that are listed cell by cell at once; by default :func:`batch_size` of the
        cells.

    Returns
    -------
    int
        Number of cells that have no particle within the search radius and keep their velocity.
    """
    empty = np.flatnonzero(lacks_velocity(density, cells, count))
    if not len(empty):
        return 0
    reach = fill_reach(cells, count)
    corner = np.array(block.origin, np.int64) - reach
    extent = np.minimum(np.array(block.shape, np.int64) + 2 * reach, cells)
    place = np.array(block.origin, np.int64), np.array(block.shape, np.int64), extent
    flat = velocity.reshape(-1)
    # The nearest particle so far: its squared distance, its position, and whether there is one. Its
    # velocity is that of the cell.
    best = np.full(len(empty), (reach * (box_size / cells)) ** 2)
    near, found = np.empty((len(empty), 3), np.float32), np.zeros(len(empty), np.bool_)
    for some, _ in cut_batches(pieces, batch or batch_size(density.size)):
        position, moved = _with_mass(some)
        some.clear()
        starts = np.zeros(int(extent.prod()) + 1, np.int64)
        _count_cells(position, cells / box_size, cells, corner, extent, starts)
        np.cumsum(starts, out=starts)
        rows = np.empty(int(starts[-1]), np.int64)
        _place_rows(position, cells / box_size, cells, corner, extent, starts[:-1].copy(), rows)
        run_threads(
            _take_nearest,
            (
                (empty[part], best[part], near[part], found[part], *place, cells, box_size, reach,
                 position, moved, starts, rows, flat)
                for part in (
                    slice(first, first + _SEARCH) for first in range(0, len(empty), _SEARCH)
                )
            ),
        )  # fmt: skip
    return len(empty) - int(found.sum())


def _with_mass(pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return flat positions and velocities of all particles with mass."""
    kept = []
    for position, velocity, mass in pieces:
        rows = slice(None) if mass is None else mass > 0.0
        whole = slice(0, len(position))
        columns = flat_rows(position, whole), flat_rows(velocity, whole)
        kept.append([column.reshape(-1, 3)[rows].reshape(-1) for column in columns])
    nothing = np.empty(0, np.float32)
    return (
        np.concatenate([nothing, *(position for position, _ in kept)]),
        np.concatenate([nothing, *(velocity for _, velocity in kept)]),
    )


@njit(inline="always")
def _local_cell(x, p, scale, cells, corner, extent):  # type: ignore[no-untyped-def]
    """Return the cell of particle ``p`` in the block with its surroundings, -1 if outside."""
    place = 0
    for axis in range(3):
        u = np.floor(x[3 * p + axis] * scale)
        if not abs(u) <= 2 * cells:
            return -1
        at = (np.int64(u) - corner[axis]) % cells
        if at >= extent[axis]:
            return -1
        place = place * extent[axis] + at
    return place


@compiled()
def _count_cells(x, scale, cells, corner, extent, starts):  # type: ignore[no-untyped-def]
    """Count the particles of each cell in the entry after the cell's."""
    for p in range(x.shape[0] // 3):
        place = _local_cell(x, p, scale, cells, corner, extent)
        if place >= 0:
            starts[place + 1] += 1


@compiled()
def _place_rows(x, scale, cells, corner, extent, cursor, rows):  # type: ignore[no-untyped-def]
    """List the particles cell by cell."""
    for p in range(x.shape[0] // 3):
        place = _local_cell(x, p, scale, cells, corner, extent)
        if place >= 0:
            rows[cursor[place]] = p
            cursor[place] += 1


@njit(inline="always")
def _apart(x, centre, size):  # type: ignore[no-untyped-def]
    """Return the distance along one periodic axis."""
    d = abs(np.float64(x) - centre)
    return min(d, size - d)


@njit
def _comes_first(x, v, p, near, e, velocity, at, plane):  # type: ignore[no-untyped-def]
    """Break a tie between a particle and the nearest one of a cell so far.

    Smaller coordinates come first, then smaller velocities.
    """
    for axis in range(3):
        if x[3 * p + axis] != near[e, axis]:
            return x[3 * p + axis] < near[e, axis]
    for axis in range(3):
        if v[3 * p + axis] != velocity[at + axis * plane]:
            return v[3 * p + axis] < velocity[at + axis * plane]
    return False


@compiled()
def _take_nearest(  # type: ignore[no-untyped-def]
    empty,
    best,
    near,
    found,
    origin,
    block,
    extent,
    cells,
    size,
    reach,
    x,
    v,
    starts,
    rows,
    velocity,
):
    """Write the velocity of the nearest particle to every empty cell.

    ``empty`` and ``velocity`` are flat in the block. ``best``, ``near`` and ``found`` have an entry
    for each empty cell: the squared distance and the position of its nearest particle in earlier
    batches, and whether there is one. ``starts`` and ``rows`` list the particles in the cells of
    the block grown by ``reach``, or of a whole axis where that would wrap.
    """
    side = size / cells
    plane = block[0] * block[1] * block[2]
    for e in range(empty.shape[0]):
        at = empty[e]
        i, j, k = at // (block[1] * block[2]), at // block[2] % block[1], at % block[2]
        cx = ((origin[0] + i) % cells + 0.5) * side
        cy = ((origin[1] + j) % cells + 0.5) * side
        cz = ((origin[2] + k) % cells + 0.5) * side
        for shell in range(reach + 1):
            # Minimum distance of this shell of cells; positions near a cell's border may be
            # rounded to the adjacent cell.
            closest = max(0.0, (shell - 0.5) * side) * (1.0 - 1e-6)
            if found[e] and best[e] < closest * closest:
                break
            for a in range(-shell, shell + 1):
                la = (i + reach + a) % extent[0]
                for b in range(-shell, shell + 1):
                    lb = (j + reach + b) % extent[1]
                    surface = abs(a) == shell or abs(b) == shell
                    for c in range(-shell, shell + 1, 1 if surface else 2 * shell):
                        cell = (la * extent[1] + lb) * extent[2] + (k + reach + c) % extent[2]
                        for row in range(starts[cell], starts[cell + 1]):
                            p = rows[row]
                            dx = _apart(x[3 * p], cx, size)
                            dy = _apart(x[3 * p + 1], cy, size)
                            dz = _apart(x[3 * p + 2], cz, size)
                            d = dx * dx + dy * dy + dz * dz
                            if d < best[e] or (
                                d == best[e]
                                and (
                                    not found[e]
                                    or _comes_first(x, v, p, near, e, velocity, at, plane)
                                )
                            ):
                                found[e], best[e] = True, d
                                for axis in range(3):
                                    near[e, axis] = x[3 * p + axis]
                                    velocity[at + axis * plane] = v[3 * p + axis]
