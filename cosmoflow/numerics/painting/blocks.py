"""Shared definitions of painting: pieces of particles, schemes, places in sorted lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

SCHEME_ORDER: Final = {"ngp": 1, "cic": 2, "tsc": 3, "pcs": 4}
"""Cells per axis that a particle's cloud touches (Hockney & Eastwood 1981, section 5-3)."""

Piece = tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float64] | None]
"""Positions (n, 3), comoving Mpc/h in [0, box), velocities (n, 3), km/s, and masses (n,).

Velocities are None if only the density is painted, masses are None if all are equal.
"""

_SEGMENT: Final = 1 << 16
"""Minimum number of particles in a job."""


def first_cell_offset(scheme: str, shift: float = 0.0) -> float:
    """Return the offset for which ``floor(x n / L + offset)`` is the first cell of a cloud.

    Parameters
    ----------
    scheme : {"ngp", "cic", "tsc", "pcs"}
        Mass assignment.
    shift : float
        Shift of the particles along every axis, in cells.
    """
    return shift - 0.5 * (SCHEME_ORDER[scheme] - 1)


def run_threads(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function that releases the GIL with every tuple of arguments; results in their order.

    Jobs are distributed one by one to as many threads as numba may use, so that neither crowded
    tiles nor a busy core delay the others, as the fixed shares of ``prange`` would. Painted fields
    do not depend on which thread runs which job.
    """
    threads = numba.get_num_threads()
    if threads == 1:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


def cut_pieces(pieces: Sequence[Piece]) -> list[tuple[int, slice]]:
    """Cut pieces into segments for the threads; return the piece and the rows of each."""
    total = sum(len(position) for position, _, _ in pieces)
    longest = max(_SEGMENT, -(-total // (8 * numba.get_num_threads())))
    return [
        (piece, slice(start, min(start + longest, len(position))))
        for piece, (position, _, _) in enumerate(pieces)
        for start in range(0, len(position), longest)
    ]


def shared_places(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of every segment's entries in a list sorted by tile.

    Parameters
    ----------
    counts : (segments, tiles) int64
        Number of entries.

    Returns
    -------
    places : (segments, tiles) int64
        Place of each segment's first entry for each tile. A tile's segments follow one another, so
        that no two segments write to the same places.
    starts : (tiles + 1,) int64
        First entry of every tile, then the number of entries.
    """
    ends = np.cumsum(counts.T.reshape(-1)).reshape(counts.T.shape)
    last = ends[:, -1] if len(counts) else np.zeros(counts.shape[1], np.int64)
    return np.ascontiguousarray(ends.T - counts), np.append(0, last)


def flat_rows(values: NDArray[np.float32] | None, rows: slice) -> NDArray[np.float32]:
    """Return rows of three as one contiguous run of float32."""
    if values is None:
        raise ValueError("a piece of the particles has no velocities")
    return np.ascontiguousarray(values[rows], np.float32).reshape(-1)


def row_masses(
    mass: NDArray[np.float64] | None, rows: slice, default: float
) -> NDArray[np.float64]:
    """Return contiguous masses, all ``default`` if a piece has none."""
    if mass is None:
        return np.full(rows.stop - rows.start, default)
    return np.ascontiguousarray(mass[rows], np.float64)
