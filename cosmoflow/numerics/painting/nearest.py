"""The velocity of the nearest particle, for cells that hold no mass.

Every empty cell takes the velocity of the particle that is nearest to its centre. Which particle
that is depends on the particles alone: distances are computed from the coordinates in the box, and
of two at the same distance the one with the smaller coordinates counts, then the one with the
smaller velocity. So the field does not depend on the order of the particles, on how they were cut
into pieces, on the shards of the grid or on the number of workers, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.painting.blocks import Piece, flat_rows, run_threads
from cosmoflow.numerics.painting.shares import LEAST_MASS, MASS_UNITS

FILL_REACH: Final = 4.0
"""Mean separations of the particles within which the nearest one is looked for."""
_LEAST_REACH: Final = 3
"""Cells; no less than the clouds of any scheme reach."""
_SEARCH: Final = 1 << 12
"""Empty cells that one thread searches for at a time."""


def fill_reach(cells: int, count: int) -> int:
    """Return the distance, in cells, within which the nearest particle is looked for.

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
    """Return which cells have too little mass for a velocity of their own.

    Parameters
    ----------
    density : (nx, ny, nz) float32
        Over its mean, as painted.
    cells : int
        Cells per axis of the grid.
    count : int
        Particles in the box.
    """
    # The painted number of the least mass, rounded as the kernel rounds it.
    least = np.float32(LEAST_MASS * (cells**3 / count / MASS_UNITS))
    lacking: NDArray[np.bool_] = density < least
    return lacking


def fill_velocity(
    velocity: NDArray[np.float32],
    density: NDArray[np.float32],
    pieces: Sequence[Piece],
    block: Block,
    cells: int,
    box_size: float,
    *,
    count: int,
) -> int:
    """Give the cells of a block that lack a velocity that of the nearest particle, in place.

    Parameters
    ----------
    velocity : (3, nx, ny, nz) float32
        Painted, km/s, contiguous.
    density : (nx, ny, nz) float32
        Painted, over its mean.
    pieces : sequence of Piece
        Positions, (n, 3) float32, comoving Mpc/h in [0, box), with their velocities and masses:
        all within :func:`fill_reach` cells of the block, and any others. Particles of mass 0 are
        passed over.
    block : Block
        The cells.
    cells : int
        Cells per axis of the whole periodic grid.
    box_size : float
        Mpc/h.
    count : int
        Particles in the whole box.

    Returns
    -------
    int
        Cells that have no particle within the reach, and keep the velocity that they had.
    """
    empty = np.flatnonzero(lacks_velocity(density, cells, count))
    if not len(empty):
        return 0
    reach = fill_reach(cells, count)
    position, moved = _with_mass(pieces)
    corner = np.array(block.origin, np.int64) - reach
    extent = np.minimum(np.array(block.shape, np.int64) + 2 * reach, cells)
    starts = np.zeros(int(extent.prod()) + 1, np.int64)
    _count_cells(position, cells / box_size, cells, corner, extent, starts)
    np.cumsum(starts, out=starts)
    rows = np.empty(int(starts[-1]), np.int64)
    _place_rows(position, cells / box_size, cells, corner, extent, starts[:-1].copy(), rows)
    place = np.array(block.origin, np.int64), np.array(block.shape, np.int64), extent
    flat = velocity.reshape(-1)
    left = run_threads(
        _take_nearest,
        (
            (empty[first : first + _SEARCH], *place, cells, box_size, reach,
             position, moved, starts, rows, flat)
            for first in range(0, len(empty), _SEARCH)
        ),
    )  # fmt: skip
    return sum(left)


def _with_mass(pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return positions and velocities of all particles that have mass, flat."""
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
    """Return the cell of particle ``p`` in the block and what is around it; -1 if it is outside."""
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
    """Count the particles of every cell, one entry further on."""
    for p in range(x.shape[0] // 3):
        place = _local_cell(x, p, scale, cells, corner, extent)
        if place >= 0:
            starts[place + 1] += 1


@compiled()
def _place_rows(x, scale, cells, corner, extent, cursor, rows):  # type: ignore[no-untyped-def]
    """List the particles cell after cell."""
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
def _comes_first(x, v, p, q):  # type: ignore[no-untyped-def]
    """Decide between particles at the same distance: smaller coordinates, then velocities."""
    for axis in range(3):
        if x[3 * p + axis] != x[3 * q + axis]:
            return x[3 * p + axis] < x[3 * q + axis]
    for axis in range(3):
        if v[3 * p + axis] != v[3 * q + axis]:
            return v[3 * p + axis] < v[3 * q + axis]
    return False


@compiled()
def _take_nearest(  # type: ignore[no-untyped-def]
    empty, origin, block, extent, cells, size, reach, x, v, starts, rows, velocity
):
    """Write the nearest particle's velocity to every empty cell; return how many found none.

    ``empty`` and ``velocity`` are flat in the block, ``starts`` and ``rows`` list the particles of
    the cells of the block grown by ``reach``, or of a whole axis where that would wrap.
    """
    side = size / cells
    plane = block[0] * block[1] * block[2]
    left = 0
    for at in empty:
        i, j, k = at // (block[1] * block[2]), at // block[2] % block[1], at % block[2]
        cx = ((origin[0] + i) % cells + 0.5) * side
        cy = ((origin[1] + j) % cells + 0.5) * side
        cz = ((origin[2] + k) % cells + 0.5) * side
        found, best = -1, (reach * side) ** 2
        for shell in range(reach + 1):
            # What lies in this shell of cells is at least so far away; positions near a cell's
            # border may be rounded to the cell beside it.
            closest = max(0.0, (shell - 0.5) * side) * (1.0 - 1e-6)
            if found >= 0 and best < closest * closest:
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
                            if d < best or (
                                d == best and (found < 0 or _comes_first(x, v, p, found))
                            ):
                                found, best = p, d
        if found < 0:
            left += 1
            continue
        for axis in range(3):
            velocity[at + axis * plane] = v[3 * found + axis]
    return left
