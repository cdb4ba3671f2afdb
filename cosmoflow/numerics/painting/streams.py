"""Locations in memory of the particles of every tile, which the tiles' kernels read.

Particles in spatial order, such as those from a lattice, are read in place: long runs of them touch
the same tiles, and only the runs are sorted. Other particles are first copied into the order of the
tiles; reading them in place would cost several cache misses each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.painting.blocks import (
    Piece,
    cut_pieces,
    flat_rows,
    row_masses,
    run_threads,
    shared_places,
)
from cosmoflow.numerics.painting.shares import LONGEST_RUN
from cosmoflow.numerics.painting.sorting import sort_particles
from cosmoflow.numerics.painting.tables import BATCH, CLASS_BITS, TouchTables, first_cells, slot

LEAST_RUN: Final = 2.5
"""Minimum mean length of runs for reading in place; it affects only speed."""
_SAMPLES: Final = 16
_SAMPLE: Final = 2048
"""Number of samples of the length of runs, and particles per sample."""
_RUN: Final = (np.int64, np.int32)
"""Types of a run's class and of its first particle."""
_ONE, _TWO = np.uint64(1), np.uint64(2)


@dataclass(frozen=True, slots=True)
class Streams:
    """Locations of the particles of every tile.

    Parameters
    ----------
    starts : (tiles + 1,) int64
        First run of every tile, then the number of runs.
    runs : (n, 3) int64
        Source, first row, and last row plus one of every run.
    sources : (sources, 3) int64
        Addresses of positions, velocities and masses.
    stride, mass_stride : int
        Lengths of rows, in numbers.
    arrays : tuple
        Arrays at the addresses, which must be kept alive.
    """

    starts: NDArray[np.int64]
    runs: NDArray[np.int64]
    sources: NDArray[np.int64]
    stride: int
    mass_stride: int
    arrays: tuple[Any, ...]


@compiled()
def _find_runs(x, scale, offset, cells, classes, keys, firsts):  # type: ignore[no-untyped-def]
    """List the class and the first particle of each run of one class; return their number."""
    count, size = x.shape[0] // 3, classes.shape[1]
    along_x, along_y, along_z = classes[0], classes[1], classes[2]
    first = np.empty(3 * BATCH, np.int32)
    runs, last = 0, np.int64(-1)
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        first_cells(x[3 * start : 3 * (start + batch)], scale, offset, first)
        if start % LONGEST_RUN == 0:
            last = np.int64(-1)  # begin a new run
        for k in range(batch):
            q = np.uint64(3 * k)
            key = (
                along_x[slot(first[q], cells, size)]
                + along_y[slot(first[q + _ONE], cells, size)]
                + along_z[slot(first[q + _TWO], cells, size)]
            )
            # Write every particle as the start of the next run: this avoids a mispredicted branch.
            keys[np.uint64(runs)] = key
            firsts[np.uint64(runs)] = start + k
            runs += key != last
            last = key
    return runs


@compiled()
def _place_runs(keys, firsts, source, base, end, tiles_x, tiles_y, tiles_z, cursor, runs):  # type: ignore[no-untyped-def]
    """Count the runs of every tile in ``cursor``, or write them at its positions."""
    width, mask = tiles_x.shape[0], (1 << CLASS_BITS) - 1
    for r in range(keys.shape[0]):
        i, j, k = keys[r] >> (2 * CLASS_BITS), (keys[r] >> CLASS_BITS) & mask, keys[r] & mask
        first = base + firsts[r]
        last = base + firsts[r + 1] if r + 1 < keys.shape[0] else end
        for a in range(width):
            if tiles_x[a, i] < 0:
                break
            for b in range(width):
                if tiles_y[b, j] < 0:
                    break
                for c in range(width):
                    if tiles_z[c, k] < 0:
                        break
                    tile = tiles_x[a, i] + tiles_y[b, j] + tiles_z[c, k]
                    place = cursor[tile]
                    cursor[tile] = place + 1
                    if runs is not None:
                        runs[place, 0] = source
                        runs[place, 1] = first
                        runs[place, 2] = last


def make_streams(
    pieces: Sequence[Piece],
    tables: TouchTables,
    scale: float,
    offset: float,
    *,
    velocities: bool,
    masses: bool,
    default_mass: float,
) -> Streams:
    """Find the particles of every tile, in place or in a sorted copy.

    Parameters
    ----------
    pieces : sequence of Piece
        Particles, read more than once.
    tables : TouchTables
        The tiles.
    scale, offset : float
        The first cell of a cloud is ``floor(x scale + offset)``.
    velocities, masses : bool
        Whether velocities and masses are needed.
    default_mass : float
        Mass of particles in pieces without masses, in the unit of the other pieces.
    """
    if _mean_run(pieces, tables, scale, offset) >= LEAST_RUN:
        return _streams_in_place(pieces, tables, scale, offset, velocities, masses, default_mass)
    found = sort_particles(
        pieces,
        tables,
        scale,
        offset,
        velocities=velocities,
        masses=masses,
        records=True,
        default_mass=default_mass,
    )
    starts, runs = _split_rows(found.starts)
    arrays = found.position, found.velocity, found.mass
    return Streams(
        starts, runs, np.array([_addresses(arrays)]), found.stride, found.mass_stride, arrays
    )


def _split_rows(starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first run of every tile, and the runs, for particles sorted by tile."""
    lengths = np.diff(starts)
    counts = np.maximum(1, -(-lengths // LONGEST_RUN))
    ends = np.cumsum(counts)
    index = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    first = np.repeat(starts[:-1], counts) + LONGEST_RUN * index
    last = np.minimum(first + LONGEST_RUN, np.repeat(starts[1:], counts))
    return np.append(0, ends), np.column_stack([np.zeros_like(first), first, last])


def _mean_run(pieces: Sequence[Piece], tables: TouchTables, scale: float, offset: float) -> float:
    """Return the mean length of runs in samples of the particles; 0 without particles."""
    segments = cut_pieces(pieces)
    particles = runs = 0
    for piece, rows in segments[:: max(1, len(segments) // _SAMPLES)]:
        x = flat_rows(pieces[piece][0], slice(rows.start, min(rows.stop, rows.start + _SAMPLE)))
        keys, firsts = (np.empty(len(x) // 3 + 1, kind) for kind in _RUN)
        particles += len(x) // 3
        runs += _find_runs(x, scale, offset, tables.cells, tables.classes, keys, firsts)
    return particles / max(1, runs)


def _streams_in_place(
    pieces: Sequence[Piece],
    tables: TouchTables,
    scale: float,
    offset: float,
    velocities: bool,
    masses: bool,
    default_mass: float,
) -> Streams:
    """Find the runs of every tile in the unsorted particles."""
    whole = [slice(0, len(position)) for position, _, _ in pieces]
    arrays = tuple(
        (
            flat_rows(position, rows),
            flat_rows(velocity, rows) if velocities else None,
            row_masses(mass, rows, default_mass) if masses else None,
        )
        for (position, velocity, mass), rows in zip(pieces, whole, strict=True)
    )
    segments = cut_pieces(pieces)
    counts = np.zeros((len(segments), tables.count), np.int64)
    tiles = [t[:, s] for t, s in zip(tables.touched, tables.samples, strict=True)]

    def find(segment: tuple[int, slice], count: NDArray[np.int64]) -> tuple[Any, ...]:
        piece, rows = segment
        x = arrays[piece][0][3 * rows.start : 3 * rows.stop]
        keys, firsts = (np.empty(len(x) // 3 + 1, kind) for kind in _RUN)
        number = _find_runs(x, scale, offset, tables.cells, tables.classes, keys, firsts)
        found = keys[:number].copy(), firsts[:number].copy(), piece, rows.start, rows.stop
        _place_runs(*found, *tiles, count, None)
        return found

    found = run_threads(find, zip(segments, counts, strict=True))
    cursors, starts = shared_places(counts)
    runs = np.empty((int(starts[-1]), 3), np.int64)
    run_threads(
        _place_runs,
        ((*some, *tiles, cursor, runs) for some, cursor in zip(found, cursors, strict=True)),
    )
    sources = np.array([_addresses(piece) for piece in arrays])
    return Streams(starts, runs, sources, 3, 1, arrays)


def _addresses(arrays: Sequence[NDArray[Any] | None]) -> list[int]:
    """Return the memory addresses of arrays, 0 for None."""
    return [0 if array is None else array.ctypes.data for array in arrays]
