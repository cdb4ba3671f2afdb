"""Sorting of particles by the tiles or shards that their clouds touch.

A counting sort makes two passes over the particles in their given order: the first counts, the
second copies every particle to the streams of the tiles that it touches. Reading is sequential, and
there are few enough streams for their ends to stay in the cache, so that shuffled particles cost
little more than ordered ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.painting.blocks import (
    SCHEME_ORDER,
    Piece,
    cut_pieces,
    first_cell_offset,
    flat_rows,
    row_masses,
    run_threads,
    shared_places,
)
from cosmoflow.numerics.painting.tables import BATCH, SEVERAL, TouchTables, first_cells, slot

_ONE, _TWO = np.uint64(1), np.uint64(2)


@njit(inline="always")
def _copy(source, target, stride, p, row):  # type: ignore[no-untyped-def]
    """Copy the three floats of particle ``p`` to the front of a row of ``stride`` floats."""
    q = np.uint64(3) * np.uint64(p)
    to = np.uint64(stride) * np.uint64(row)
    a, b, c = source[q], source[q + _ONE], source[q + _TWO]
    target[to], target[to + _ONE], target[to + _TWO] = a, b, c


@njit(inline="always")
def _place(tile, p, x, v, m, cursor, x_out, v_out, m_out, stride, m_stride):  # type: ignore[no-untyped-def]
    """Append particle ``p`` to the stream of a tile, or only count it if there is no output."""
    row = cursor[np.uint64(tile)]
    cursor[np.uint64(tile)] = row + 1
    if x_out is not None:
        _copy(x, x_out, stride, p, row)
        if v_out is not None:
            _copy(v, v_out, stride, p, row)
        if m_out is not None:
            m_out[np.uint64(m_stride) * np.uint64(row)] = m[np.uint64(p)]


@compiled()
def _distribute(  # type: ignore[no-untyped-def]
    x, v, m, scale, offset, cells, single, touched, cursor, x_out, v_out, m_out, stride, m_stride
):
    """Count the particles of every tile in ``cursor``, or write them at its positions."""
    count, size, width = x.shape[0] // 3, single.shape[1], touched.shape[1]
    along_x, along_y, along_z = single[0], single[1], single[2]
    first = np.empty(3 * BATCH, np.int32)
    several = np.empty(BATCH + 1, np.int64)
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        first_cells(x[3 * start : 3 * (start + batch)], scale, offset, first)
        # Clouds that cross a border are processed later: they occur at random, and a branch for
        # each particle would often be mispredicted.
        waiting = 0
        for k in range(batch):
            q = np.uint64(3 * k)
            tile = (
                along_x[slot(first[q], cells, size)]
                + along_y[slot(first[q + _ONE], cells, size)]
                + along_z[slot(first[q + _TWO], cells, size)]
            )
            alone = tile < SEVERAL
            several[np.uint64(waiting)] = k
            waiting += not alone
            if x_out is None:
                cursor[np.uint64(tile if alone else 0)] += alone
            elif alone:
                _place(tile, start + k, x, v, m, cursor, x_out, v_out, m_out, stride, m_stride)
        for w in range(waiting):
            k = several[np.uint64(w)]
            i = slot(first[3 * k], cells, size)
            j = slot(first[3 * k + 1], cells, size)
            n = slot(first[3 * k + 2], cells, size)
            for a in range(width):
                if touched[0, a, i] < 0:
                    break
                for b in range(width):
                    if touched[1, b, j] < 0:
                        break
                    for c in range(width):
                        if touched[2, c, n] < 0:
                            break
                        tile = touched[0, a, i] + touched[1, b, j] + touched[2, c, n]
                        _place(
                            tile, start + k, x, v, m, cursor, x_out, v_out, m_out, stride, m_stride
                        )


@dataclass(frozen=True, slots=True)
class Sorted:
    """Particles sorted by tile, with a copy for every tile that a particle touches.

    Parameters
    ----------
    starts : (tiles + 1,) int64
        First row of every tile, then the number of rows.
    position, velocity : (rows * stride,) float32 or None
        Three floats at the front of every row, comoving Mpc/h and km/s; views of one array when
        they share rows.
    mass : (rows * mass_stride,) float64 or None
        Mass at the front of every row, in the unit of the pieces.
    stride, mass_stride : int
        Length of a row.
    """

    starts: NDArray[np.int64]
    position: NDArray[np.float32]
    velocity: NDArray[np.float32] | None
    mass: NDArray[np.float64] | None
    stride: int
    mass_stride: int


def sort_particles(
    pieces: Sequence[Piece],
    tables: TouchTables,
    scale: float,
    offset: float,
    *,
    velocities: bool,
    masses: bool,
    records: bool,
    default_mass: float = 1.0,
) -> Sorted:
    """Sort particles by tile.

    Parameters
    ----------
    pieces : sequence of Piece
        Particles, read twice.
    tables : TouchTables
        The tiles.
    scale, offset : float
        The first cell of a cloud is ``floor(x scale + offset)``.
    velocities, masses : bool
        Whether to sort velocities and masses too.
    records : bool
        Whether all numbers of a particle share a row, which gives a single stream per tile.
    default_mass : float
        Mass of particles in pieces without masses, in the unit of the other pieces.
    """
    segments = cut_pieces(pieces)
    counts = np.zeros((len(segments), tables.count), np.int64)
    touching = tables.cells, tables.single, tables.touched

    def distribute(segment: tuple[int, slice], cursor: NDArray[np.int64], *target: Any) -> None:
        piece, rows = segment
        position, velocity, mass = pieces[piece]
        v = m = None
        # Counting needs positions only, so one compiled version serves all cases.
        if target and velocities:
            v = flat_rows(velocity, rows)
        if target and masses:
            m = row_masses(mass, rows, default_mass)
        x, out = flat_rows(position, rows), target or (None, None, None, 0, 0)
        _distribute(x, v, m, scale, offset, *touching, cursor, *out)

    run_threads(distribute, zip(segments, counts, strict=True))
    cursors, starts = shared_places(counts)
    found = _allocate(starts, velocities, masses, records)
    target = found.position, found.velocity, found.mass, found.stride, found.mass_stride
    run_threads(
        distribute,
        ((segment, cursor, *target) for segment, cursor in zip(segments, cursors, strict=True)),
    )
    return found


def _allocate(starts: NDArray[np.int64], velocities: bool, masses: bool, records: bool) -> Sorted:
    """Allocate arrays for sorted particles."""
    rows = int(starts[-1])
    if not records:
        position = np.empty(3 * rows, np.float32)
        velocity = np.empty(3 * rows, np.float32) if velocities else None
        return Sorted(starts, position, velocity, np.empty(rows) if masses else None, 3, 1)
    # A mass takes eight bytes and needs that alignment: the record for a density has a gap.
    stride = (8 if velocities else 6) if masses else (6 if velocities else 3)
    store = np.empty(rows * stride, np.float32)
    return Sorted(
        starts,
        store,
        store[3:] if velocities else None,
        store.view(np.float64)[stride // 2 - 1 :] if masses else None,
        stride,
        stride // 2,
    )


def bucket_particles(
    piece: Piece,
    cells: int,
    box_size: float,
    shard: int,
    scheme: str = "cic",
    *,
    interlaced: bool = False,
    reach: int = 0,
) -> list[Piece]:
    """Copy particles to all the shards of a grid that their clouds touch.

    Parameters
    ----------
    piece : Piece
        Positions, (n, 3) float32, comoving Mpc/h in [0, box), velocities and masses.
    cells, shard : int
        Cells per axis of the grid and of a shard (the last shard of an axis may be smaller).
    box_size : float
        Box size, Mpc/h.
    scheme : {"ngp", "cic", "tsc", "pcs"}
        Mass assignment.
    interlaced : bool
        Whether the particles will also be painted half a cell further on.
    reach : int
        Distance in cells within which a shard also gets particles; either 0 or more than the width
        of a cloud.

    Returns
    -------
    list of Piece
        One piece per shard, in C order; views of one sorted copy. A particle whose cloud crosses a
        border is in the piece of every shard that it touches.
    """
    edges = np.append(np.arange(0, cells, shard), cells)
    # Half a cell further on, a cloud begins in the same cell or in the next one.
    order = SCHEME_ORDER[scheme] + int(interlaced)
    offset = first_cell_offset(scheme)
    if reach:
        # One extra cell allows for the rounding of positions to cells.
        order, offset = 2 * reach + 3, -float(reach + 1)
    tables = TouchTables([edges] * 3, (0, 0, 0), cells, order)
    _, velocity, mass = piece
    found = sort_particles(
        [piece],
        tables,
        cells / box_size,
        offset,
        velocities=velocity is not None,
        masses=mass is not None,
        records=False,
    )
    return [
        (
            found.position[3 * start : 3 * stop].reshape(-1, 3),
            None if found.velocity is None else found.velocity[3 * start : 3 * stop].reshape(-1, 3),
            None if found.mass is None else found.mass[start:stop],
        )
        for start, stop in pairwise(found.starts.tolist())
    ]
