"""Cutting a box for inference: blocks of shards, tiles of blocks, and blending of tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmoflow.model.geometry import Geometry
from cosmoflow.numerics.blocks import Block, bounding_block, grow

Sides = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a box is cut for inference, in cells per axis.

    Parameters
    ----------
    shard : int
        Cells that one write covers.
    block : (int, int, int)
        Cells that one task predicts and writes: one shard or several.
    tile : int
        Most output cells of one tile.
    batch : int
        Tiles of a forward pass.
    overlap : int
        Cells that neighbouring tiles share, for networks whose output depends on the tile.
    cache : int
        Bytes of decoded chunks that a worker keeps for the next block.
    piece : (int, int, int)
        Cells of what it reads and keeps together: one chunk, or those of a shard along z.
    columns : bool
        Whether there are several workers, each of which goes through columns of blocks along z.
    """

    shard: int
    block: Sides
    tile: int
    batch: int = 1
    overlap: int = 0
    cache: int = 0
    piece: Sides = (0, 0, 0)
    columns: bool = False


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of a block, all of one size, in C order; made lazily, as they may be many.

    Parameters
    ----------
    origins : (range, range, range)
        Origins of the tiles along each axis.
    shape : (int, int, int)
        Cells of a tile.
    """

    origins: tuple[range, range, range]
    shape: Sides

    def __len__(self) -> int:
        return math.prod(map(len, self.origins))

    def __iter__(self) -> Iterator[Block]:
        return (Block(origin, self.shape) for origin in itertools.product(*self.origins))

    @property
    def bounds(self) -> Block:
        """The smallest block that contains all tiles."""
        x, y, z = self.origins
        nx, ny, nz = (
            axis[-1] - axis[0] + side for axis, side in zip(self.origins, self.shape, strict=True)
        )
        return Block((x[0], y[0], z[0]), (nx, ny, nz))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a block, and the tiles that predict it.

    Parameters
    ----------
    block : Block
        Cells of the piece.
    tiles : TileGrid
        Tiles that cover these cells; they may extend past them.
    """

    block: Block
    tiles: TileGrid


def cut_pieces(block: Block, geometry: Geometry, layout: Layout, grid: int) -> list[Piece]:
    """Cut a block into pieces whose tiles share one lattice, and the pieces into tiles.

    The lattice of the stride starts at cell 0 of the box. If the grid is not a multiple of the
    stride, the lattice does not close across the periodic border: cell ``n`` is cell 0 again, and
    is predicted by a tile of another lattice than cell ``n - 1``. A block that crosses the border,
    as derivatives require, then has a piece on either side.

    Parameters
    ----------
    block : Block
        Block to cut; it may start below cell 0 and end past the grid.
    geometry : Geometry
        Geometry of the network.
    layout : Layout
        Sizes of tiles.
    grid : int
        Cells per axis of the periodic box.

    Returns
    -------
    list of Piece
        One piece, unless the block crosses the border of such a grid.
    """
    if geometry.fixed_output is not None or grid % geometry.stride == 0:
        return [Piece(block, cut_tiles(block, geometry, layout))]
    axes = [
        _split_periods(origin, length, grid)
        for origin, length in zip(block.origin, block.shape, strict=True)
    ]
    pieces = []
    for (x, nx, sx), (y, ny, sy), (z, nz, sz) in itertools.product(*axes):
        inside = cut_tiles(Block((x - sx, y - sy, z - sz), (nx, ny, nz)), geometry, layout)
        tx, ty, tz = (
            range(axis.start + shift, axis.stop + shift, axis.step)
            for axis, shift in zip(inside.origins, (sx, sy, sz), strict=True)
        )
        pieces.append(Piece(Block((x, y, z), (nx, ny, nz)), TileGrid((tx, ty, tz), inside.shape)))
    return pieces


def read_region(block: Block, geometries: Iterable[Geometry], layout: Layout, grid: int) -> Block:
    """Return the cells that networks read to predict a block.

    Neighbouring tiles share most of their halos, so one read covers all of them.
    """
    return bounding_block(
        [
            grow(piece.tiles.bounds, geometry.halo)
            for geometry in geometries
            for piece in cut_pieces(block, geometry, layout, grid)
        ]
    )


def _split_periods(origin: int, length: int, grid: int) -> list[tuple[int, int, int]]:
    """Cut an interval at periodic borders; return origin, length, start of period of each part."""
    parts = []
    while length:
        period = origin // grid * grid
        part = min(length, period + grid - origin)
        parts.append((origin, part, period))
        origin, length = origin + part, length - part
    return parts


def cut_tiles(block: Block, geometry: Geometry, layout: Layout) -> TileGrid:
    """Return the tiles that predict a block on one lattice.

    A network without padding gives a cell the same value from any tile whose origin is on the
    lattice of its stride, so its tiles fit the block. With padding the value depends on the tile,
    so tiles have a fixed size and a lattice that starts at cell 0, independent of the block.
    """
    axes = [
        _cut_axis(origin, length, geometry, layout)
        for origin, length in zip(block.origin, block.shape, strict=True)
    ]
    (x, nx), (y, ny), (z, nz) = axes
    return TileGrid((x, y, z), (nx, ny, nz))


def _cut_axis(origin: int, length: int, geometry: Geometry, layout: Layout) -> tuple[range, int]:
    """Return the origins and the size of the tiles along an axis."""
    if geometry.fixed_output is not None:
        size = geometry.fixed_output
        step = size - layout.overlap
        first = (origin - size) // step + 1
        return range(first * step, origin + length, step), size
    stride = geometry.stride
    low = origin // stride * stride
    cells = -(-(origin + length - low) // stride)
    count = -(-cells * stride // layout.tile)
    size = -(-cells // count) * stride
    return range(low, low + cells * stride, size), size


def batches(tiles: Iterable[Block], size: int) -> Iterator[list[Block]]:
    """Cut tiles into batches."""
    remaining = iter(tiles)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def blending_weights(size: int, shared: int) -> NDArray[np.float32] | None:
    """Return the weight of each cell of a tile where tiles overlap.

    Along an axis the weight rises linearly over the cells shared with the previous tile and falls
    over those shared with the next, so the weights of all tiles sum to 1 everywhere.

    Parameters
    ----------
    size : int
        Cells of a tile, per axis.
    shared : int
        Cells that neighbouring tiles share, at most half a tile.

    Returns
    -------
    (size, size, size) float32, or None
        The weights; None if tiles share no cells and every weight is 1.
    """
    if shared == 0:
        return None
    rise = np.arange(1, shared + 1) / (shared + 1)
    axis = np.concatenate([rise, np.ones(size - 2 * shared), rise[::-1]])
    return np.asarray(np.einsum("i,j,k->ijk", axis, axis, axis), np.float32)
