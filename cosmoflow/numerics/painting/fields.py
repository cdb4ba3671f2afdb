"""Density, momentum and velocity of a block of cells, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting.blocks import SCHEME_ORDER, Piece, first_cell_offset, run_threads
from cosmoflow.numerics.painting.shares import MOST_MASS
from cosmoflow.numerics.painting.streams import make_streams
from cosmoflow.numerics.painting.tables import TouchTables
from cosmoflow.numerics.painting.tiles import tile_painter
from cosmoflow.numerics.painting.vectors import LINE

FIELDS: Final = ("density", "momentum", "velocity")
TILE: Final = (16, 16, 64)
"""Maximum cells of a tile per axis: its sums, 32 bytes per cell, stay in the L2 cache.

Tiles are long in z because cells along z are adjacent in memory.
"""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Tiles of a block along one axis.

    If clouds around the periodic axis reach a single tile from both sides, the tile is the whole
    axis, its margins are folded onto it, and only the block's part is kept.
    """

    edges: NDArray[np.int64]
    """Starts of the tiles and end of the last one, in cells from the block's origin."""
    lengths: NDArray[np.int64]
    """Cells of every tile."""
    fold: bool

    @classmethod
    def cut(cls, length: int, cells: int, order: int, most: int) -> _Axis:
        """Cut ``length`` of ``cells`` cells into equal tiles of at most ``most`` cells."""
        tiles = -(-length // most)
        edges = np.arange(tiles + 1) * length // tiles
        if tiles == 1 and length + order - 1 > cells:
            return cls(edges, np.array([cells]), True)
        return cls(edges, np.diff(edges), False)


def paint_block(
    pieces: Sequence[Piece],
    block: Block,
    cells: int,
    box_size: float,
    scheme: str = "cic",
    *,
    out: Mapping[str, NDArray[np.float32]] | None = None,
    **options: Any,
) -> dict[str, NDArray[np.float32]]:
    """Assign particles to the cells of a block.

    Parameters
    ----------
    pieces : sequence of Piece
        Positions, (n, 3) float32, comoving Mpc/h in [0, box), with their velocities and masses: all
        particles that touch the block, and any others. Read several times.
    block, cells, box_size, scheme, **options
        See :class:`BlockPainter`.
    out : mapping of str to array, optional
        Contiguous arrays for the fields; by default new arrays.

    Returns
    -------
    dict of str to (nx, ny, nz) or (3, nx, ny, nz) float32
        See :meth:`BlockPainter.finish`.

    Raises
    ------
    DataError
        A cell holds more than 6.7e7 mean masses.
    """
    return BlockPainter(block, cells, box_size, scheme, **options).finish(pieces, out=out)


class BlockPainter:
    """Assigns particles to the cells of a block, batch by batch.

    Parameters
    ----------
    block : Block
        Cells to paint, inside the grid.
    cells : int
        Cells per axis of the whole periodic grid.
    box_size : float
        Box size, Mpc/h.
    scheme : {"ngp", "cic", "tsc", "pcs"}
        Mass assignment.
    count : int
        Number of particles in the whole box.
    mean_mass : float
        Mean mass of the particles, in the unit of the pieces' masses; also the mass of particles in
        pieces without masses.
    background : (3,) float
        Velocity of cells without mass, km/s: mean momentum over mean density.
    fields : collection of {"density", "momentum", "velocity"}
        Fields to paint. The density alone needs no velocities and is faster.
    shift : float
        Shift of all particles along every axis, in cells, -1 to 1; half a cell for the second grid
        of an interlaced pair (Sefusatti et al. 2016, section 3.1).

    Notes
    -----
    Every contribution is rounded to a multiple of 2**-36 mean masses, or 2**-26 mean masses times
    km/s, and summed as int64. The fields therefore do not depend on how the particles are cut into
    batches, nor on their order. A net momentum above 1.4e11 mean masses times km/s in one cell,
    6.7e7 particles at 2000 km/s, would overflow unnoticed.

    Particles in spatial order are read in place; their runs take 8 bytes per particle. Others are
    sorted by tiles of some 16 000 cells into a copy of 24 bytes each (12 without velocities, 32 and
    24 with masses), plus 15 to 50 % for particles that touch several tiles. Each of numba's threads
    paints whole tiles. The sums of all batches but the last take 32 bytes per cell (8 without
    momenta); a single batch needs no such sums.
    """

    def __init__(
        self,
        block: Block,
        cells: int,
        box_size: float,
        scheme: str = "cic",
        *,
        count: int,
        mean_mass: float = 1.0,
        background: Sequence[float] | NDArray[np.float64] = (0.0, 0.0, 0.0),
        fields: Collection[str] = FIELDS,
        shift: float = 0.0,
    ) -> None:
        self._block, self._cells, self._order = block, cells, SCHEME_ORDER[scheme]
        self._scale, self._offset = cells / box_size, first_cell_offset(scheme, shift)
        self._mean_mass, self._density_scale = mean_mass, cells**3 / count
        self._background, self._fields = np.asarray(background, np.float64), fields
        self._moving = "momentum" in fields or "velocity" in fields
        self._axes = [
            _Axis.cut(length, cells, self._order, most)
            for length, most in zip(block.shape, TILE, strict=True)
        ]
        self._tables = TouchTables(
            [axis.edges for axis in self._axes], block.origin, cells, self._order
        )
        x, y, z = (axis.lengths for axis in self._axes)
        sizes = x[:, None, None] * y[:, None] * z * (4 if self._moving else 1)
        self._places = np.append(0, np.cumsum(sizes))
        self._sums = np.empty(0, np.int64)
        self._begun = np.zeros(self._tables.count, np.bool_)
        self._added = np.zeros(self._tables.count)

    def add(self, pieces: Sequence[Piece]) -> None:
        """Add particles to the sums.

        Parameters
        ----------
        pieces : sequence of Piece
            Positions, (n, 3) float32, comoving Mpc/h in [0, box), with their velocities and masses.
            Read several times, but not after the call. Pass them through :func:`check_particles`
            first: particles that are not finite are left out.

        Raises
        ------
        DataError
            A cell holds more than 6.7e7 mean masses.
        """
        if not len(self._sums):
            # Pages that no tile has written to take no memory.
            self._sums = np.empty(self._places[-1], np.int64)
        self._paint(pieces, None)

    def finish(
        self, pieces: Sequence[Piece] = (), *, out: Mapping[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Add the last particles, and return the fields. The sums are gone then.

        Parameters
        ----------
        pieces : sequence of Piece
            See :meth:`add`.
        out : mapping of str to array, optional
            Contiguous arrays for the fields; by default new arrays.

        Returns
        -------
        dict of str to (nx, ny, nz) or (3, nx, ny, nz) float32
            ``density`` over its mean; ``momentum`` ``(1 + delta) v``, km/s; ``velocity`` momentum
            over density, km/s, or the background velocity in cells with less than 1.5e-8 mean
            masses (Wu et al. 2021, footnote 5).

        Raises
        ------
        DataError
            A cell holds more than 6.7e7 mean masses.
        """
        painted = {name: _target(name, self._block, out) for name in self._fields}
        self._paint(pieces, painted)
        self._sums = np.empty(0, np.int64)
        return painted

    def _paint(
        self, pieces: Sequence[Piece], painted: Mapping[str, NDArray[np.float32]] | None
    ) -> None:
        """Paint all tiles, ranges of them in parallel, to fields or else to the kept sums."""
        weighted = any(mass is not None for _, _, mass in pieces)
        particles = make_streams(
            pieces,
            self._tables,
            self._scale,
            self._offset,
            velocities=self._moving,
            masses=weighted,
            default_mass=self._mean_mass,
        )
        tiles = np.array([len(axis.lengths) for axis in self._axes])
        edges = np.zeros((3, tiles.max() + 1), np.int64)
        lengths = np.ones((3, tiles.max()), np.int64)
        for row, axis in enumerate(self._axes):
            edges[row, : len(axis.edges)] = axis.edges
            lengths[row, : len(axis.lengths)] = axis.lengths
        nothing = np.empty(0, np.float32)
        arguments: tuple[Any, ...] = (
            particles.starts,
            particles.runs,
            particles.sources,
            particles.stride,
            particles.mass_stride,
            self._mean_mass,
            self._scale,
            self._offset,
            self._cells,
            np.array(self._block.origin, np.int64),
            np.array(self._block.shape, np.int64),
            tiles,
            edges,
            lengths,
            np.array([axis.fold for axis in self._axes]),
            self._sums,
            self._places,
            self._begun,
            self._added,
            painted is not None,
            self._density_scale,
            self._background,
            *((painted or {}).get(name, nothing).reshape(-1) for name in FIELDS),
        )
        painter = tile_painter(self._order, self._moving, weighted)
        total = self._tables.count
        # Enough ranges to keep all threads busy to the end, but fewer calls than tiles.
        run = max(1, total // (32 * numba.get_num_threads()))
        overflown = run_threads(
            painter,
            ((first, min(first + run, total), *arguments) for first in range(0, total, run)),
        )
        if sum(overflown):
            raise DataError(
                "a cell has more mass than its sum can hold",
                limit=f"{MOST_MASS:.3g} mean particle masses",
                remedy="check the length unit of the positions, and the masses",
            )


def _target(
    name: str, block: Block, out: Mapping[str, NDArray[np.float32]] | None
) -> NDArray[np.float32]:
    """Return the output array of a field."""
    shape = block.shape if name == "density" else (3, *block.shape)
    if out is None:
        # Align to a cache line, which numpy does not do.
        store = np.empty(math.prod(shape) + LINE, np.float32)
        return store[-(store.ctypes.data // 4) % LINE :][: math.prod(shape)].reshape(shape)
    found = out[name]
    if found.shape != shape or found.dtype != np.float32 or not found.flags.c_contiguous:
        raise ValueError(f"{name} needs a contiguous float32 array of shape {shape}")
    return found


def divide_momentum(
    momentum: NDArray[Any], density: NDArray[Any], background: NDArray[Any]
) -> NDArray[Any]:
    """Return momentum over density, or the background velocity in cells without mass.

    Parameters
    ----------
    momentum : (3, nx, ny, nz) float
        Momentum, km/s.
    density : (nx, ny, nz) float
        Density over its mean.
    background : (3,) float
        Mean momentum over mean density, km/s (Wu et al. 2021, footnote 5).
    """
    empty = density == 0.0
    velocity: NDArray[Any] = momentum / np.where(empty, density.dtype.type(1.0), density)
    velocity[:, empty] = background[:, None]
    return velocity
