"""Blocks of cells of a periodic grid, and their geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Slices = tuple[slice, slice, slice]
Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Block:
    """A cuboid of cells of a periodic grid: first cell and shape, per axis."""

    origin: tuple[int, int, int]
    shape: tuple[int, int, int]


def axis_blocks(cells: int, size: int) -> list[tuple[int, int]]:
    """Return ``(origin, length)`` of the blocks along an axis; the last may be shorter."""
    return [(origin, min(size, cells - origin)) for origin in range(0, cells, size)]


def grid_blocks(cells: int, size: int) -> list[Block]:
    """Return the blocks of a cubic grid in C order; together they cover each cell once."""
    return split_block(Block((0, 0, 0), (cells, cells, cells)), size)


def split_block(block: Block, size: int) -> list[Block]:
    """Return the sub-blocks of a block, anchored at its origin, in C order."""
    axes = [
        [(start + origin, length) for origin, length in axis_blocks(extent, size)]
        for start, extent in zip(block.origin, block.shape, strict=True)
    ]
    return [Block((x[0], y[0], z[0]), (x[1], y[1], z[1])) for x, y, z in itertools.product(*axes)]


def central_boxes(cells: int, side: int) -> list[Block]:
    """Return the cubes that fit side by side into the centre of a grid, in C order.

    Parameters
    ----------
    cells, side : int
        Cells per axis of the grid and of a cube; no cube larger than the grid fits, and none of 0.
    """
    return split_block(central_block(cells, side), side) if side else []


def central_block(cells: int, side: int) -> Block:
    """Return the block of all cubes of :func:`central_boxes`."""
    count = cells // side
    margin = (cells - count * side) // 2
    return Block((margin,) * 3, (count * side,) * 3)


def shards_near(covered: NDArray[np.bool_], cells: int, size: int, reach: int) -> NDArray[np.bool_]:
    """Return which shards along an axis are within ``reach`` cells of covered bins.

    Parameters
    ----------
    covered : (bins,) bool
        Covered bins; the bins divide the periodic axis equally.
    cells, size : int
        Cells of the axis and of a shard.
    reach : int
        Distance in cells.

    Returns
    -------
    (shards,) bool
    """
    bins, shards = len(covered), -(-cells // size)
    near = np.zeros(shards, np.bool_)
    for one in np.flatnonzero(covered).tolist():
        first = math.floor(one * cells / bins) - reach
        last = math.ceil((one + 1) * cells / bins) + reach
        near[(np.arange(first, min(last, first + cells)) % cells) // size] = True
    return near


def grow(block: Block, halo: int) -> Block:
    """Return the block extended by ``halo`` cells on every side; its origin may be negative."""
    ox, oy, oz = block.origin
    nx, ny, nz = block.shape
    return Block((ox - halo, oy - halo, oz - halo), (nx + 2 * halo, ny + 2 * halo, nz + 2 * halo))


def axis_runs(origin: int, length: int, cells: int) -> Iterator[tuple[slice, slice]]:
    """Yield (source, target) slices that cover a run of a periodic axis without wrapping."""
    done = 0
    while done < length:
        start = (origin + done) % cells
        run = min(length - done, cells - start)
        yield slice(start, start + run), slice(done, done + run)
        done += run


def periodic_runs(block: Block, cells: int) -> Iterator[tuple[Slices, Slices]]:
    """Yield (source, target) slices that cover a block of a periodic grid without wrapping."""
    axes = [
        list(axis_runs(origin, length, cells))
        for origin, length in zip(block.origin, block.shape, strict=True)
    ]
    for (x, to_x), (y, to_y), (z, to_z) in itertools.product(*axes):
        yield (x, y, z), (to_x, to_y, to_z)


def read_periodic(
    read: Callable[[tuple[slice, ...]], NDArray[np.float32]],
    lead: tuple[int, ...],
    block: Block,
    cells: int,
) -> NDArray[np.float32]:
    """Read a block of a periodic grid, wrapped as often as needed.

    Parameters
    ----------
    read : callable
        Takes three slices inside the grid and returns an array ``(*lead, ...)``.
    lead : tuple of int
        Leading dimensions of what ``read`` returns.
    block : Block
        Block to read; it may start below 0, end past the grid and be larger than the grid.
    cells : int
        Cells per axis of the grid.

    Returns
    -------
    (*lead, *block.shape) float32
    """
    out = np.empty((*lead, *block.shape), np.float32)
    for source, target in periodic_runs(block, cells):
        out[(..., *target)] = read(source)
    return out


def read_once(
    read: Callable[[Block], NDArray[np.float32]], block: Block, cells: int
) -> NDArray[np.float32]:
    """Read a block of a periodic grid, without reading any cell twice.

    Parameters
    ----------
    read : callable
        Takes a block, which may wrap around, and returns an array ``(..., *block.shape)``.
    block : Block
        Block to read; it may be larger than the grid.
    cells : int
        Cells per axis of the grid.

    Returns
    -------
    (..., *block.shape) float32
    """
    if max(block.shape) <= cells:
        return read(block)
    axes = list(zip(block.origin, block.shape, strict=True))
    (x, nx), (y, ny), (z, nz) = ((0, cells) if size > cells else (at, size) for at, size in axes)
    inner = read(Block((x, y, z), (nx, ny, nz)))
    out = np.empty((*inner.shape[:-3], *block.shape), np.float32)
    runs = (
        list(axis_runs(at, size, cells)) if size > cells else [(slice(None), slice(None))]
        for at, size in axes
    )
    for (x_in, x_out), (y_in, y_out), (z_in, z_out) in itertools.product(*runs):
        out[..., x_out, y_out, z_out] = inner[..., x_in, y_in, z_in]
    return out


def cut_block(field: NDArray[np.float32], block: Block) -> NDArray[np.float32]:
    """Return a copy of a periodic block of a field ``(..., n, n, n)`` in memory."""

    def read(part: tuple[slice, ...]) -> NDArray[np.float32]:
        x, y, z = part
        return field[..., x, y, z]

    return read_periodic(read, field.shape[:-3], block, field.shape[-1])


def overlap(block: Block, tile: Block) -> tuple[Slices, Slices]:
    """Return the overlap of a block and a tile as slices into the block and into the tile."""
    inside, source = [], []
    for start, length, first, size in zip(
        block.origin, block.shape, tile.origin, tile.shape, strict=True
    ):
        low, high = max(start, first), min(start + length, first + size)
        inside.append(slice(low - start, high - start))
        source.append(slice(low - first, high - first))
    return (inside[0], inside[1], inside[2]), (source[0], source[1], source[2])


def bounding_block(blocks: Sequence[Block]) -> Block:
    """Return the smallest block that contains all given blocks."""
    low = np.min([block.origin for block in blocks], axis=0)
    high = np.max([np.add(block.origin, block.shape) for block in blocks], axis=0)
    (x, y, z), (nx, ny, nz) = low.tolist(), (high - low).tolist()
    return Block((x, y, z), (nx, ny, nz))


def intersect(first: Block, second: Block) -> Block | None:
    """Return the cells that two blocks share, or None."""
    low = np.maximum(first.origin, second.origin)
    high = np.minimum(np.add(first.origin, first.shape), np.add(second.origin, second.shape))
    if (high <= low).any():
        return None
    (x, y, z), (nx, ny, nz) = low.tolist(), (high - low).tolist()
    return Block((x, y, z), (nx, ny, nz))


def place(part: Block, whole: Block) -> Slices:
    """Return the slices of a block within a block that contains it."""
    x, y, z = (
        slice(first - start, first - start + length)
        for first, length, start in zip(part.origin, part.shape, whole.origin, strict=True)
    )
    return x, y, z
