"""A network run over a periodic box, tile by tile, in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.config.settings import InferConfig
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.precision import autocast
from cosmoflow.model.sources import FieldSource, Flow, read_inputs
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.symmetry import spread_symmetries
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.storage.fields import FieldStore

_LARGEST_DEFAULT_TILE = 96
_BLOCK_CELLS = 128
"""Per axis of what is read at once of a box that is predicted in memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a box is cut for inference, in cells per axis.

    Parameters
    ----------
    shard : int
        What one task writes.
    tile : int
        Output of one forward pass; tiles are anchored at cell 0 of the box.
    """

    shard: int
    tile: int

    @classmethod
    def choose(cls, config: InferConfig, geometry: Geometry, store: FieldStore) -> Layout:
        """Choose shard and tile from the settings, the network and the store.

        Raises
        ------
        ConfigError
            The tile does not divide into the network's stride.
        """
        shard = min(config.shard or store.shard, store.grid)
        if geometry.fixed_output is not None:
            tile = geometry.check_output(config.tile or geometry.fixed_output, "infer.tile")
            return cls(shard, tile)
        tile = min(config.tile or _default_tile(shard, geometry.stride), store.grid)
        return cls(shard, geometry.check_output(tile, "infer.tile"))


def _default_tile(shard: int, stride: int) -> int:
    """Return the largest tile that cuts the shard evenly and that memory takes easily."""
    # A shard off the lattice is covered by tiles that reach past it.
    covered = -(-shard // stride) * stride
    sizes = range(stride, min(covered, _LARGEST_DEFAULT_TILE) + 1, stride)
    return max(size for size in sizes if covered % size == 0)


def covering_tiles(block: Block, tile: int) -> list[Block]:
    """Return the tiles of the lattice anchored at cell 0 that touch a block, in C order."""
    axes = [
        range(origin // tile * tile, origin + length, tile)
        for origin, length in zip(block.origin, block.shape, strict=True)
    ]
    return [Block((x, y, z), (tile, tile, tile)) for x, y, z in itertools.product(*axes)]


def overlap(block: Block, tile: Block) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a tile lies in a block: slices into the block and into the tile."""
    inside, source = [], []
    for start, length, first, size in zip(
        block.origin, block.shape, tile.origin, tile.shape, strict=True
    ):
        low, high = max(start, first), min(start + length, first + size)
        inside.append(slice(low - start, high - start))
        source.append(slice(low - first, high - first))
    return tuple(inside), tuple(source)


@torch.inference_mode()
def predict_block(
    model: VelocityModel,
    source: FieldSource,
    flows: tuple[Flow, ...],
    block: Block,
    tile: int,
    config: InferConfig,
    device: torch.device,
) -> NDArray[np.float32]:
    """Predict one block of a periodic box, tile by tile.

    Parameters
    ----------
    model : VelocityModel
        On ``device``, in evaluation mode.
    source : FieldSource
        The box.
    flows : tuple of Flow
        Which stored global velocities the model takes.
    block : Block
        Cells to predict.
    tile : int
        Output cells per axis of one forward pass.
    config : InferConfig
        Batch, precision and symmetries.
    device : torch.device
        Where the model is.

    Returns
    -------
    (3, nx, ny, nz) float32
        km/s.
    """
    out = np.empty((3, *block.shape), np.float32)
    tiles = covering_tiles(block, tile)
    # Neighbouring tiles share most of their halos, so what all of them need is read once.
    region = bounding_block(tiles)
    density, velocities = read_inputs(source, flows, region, model.geometry.halo)
    for group in _batches(tiles, config.batch):
        parts = [_haloed_part(one, region, model.geometry.halo) for one in group]
        with autocast(config.precision, device):
            predicted = model.average(
                torch.stack([density[x, y, z] for x, y, z in parts]).to(device),
                torch.stack([velocities[..., x, y, z] for x, y, z in parts]).to(device),
                spread_symmetries(config.symmetries),
            )
        for one, values in zip(group, predicted.cpu().numpy(), strict=True):
            inside, part = overlap(block, one)
            out[(slice(None), *inside)] = values[(slice(None), *part)]
    return out


def predict_box(
    model: VelocityModel,
    source: FieldSource,
    flows: tuple[Flow, ...],
    config: InferConfig,
    device: torch.device,
) -> NDArray[np.float32]:
    """Predict a whole periodic box in memory.

    Parameters
    ----------
    model, source, flows, config, device
        See :func:`predict_block`.

    Returns
    -------
    (3, n, n, n) float32
        km/s.
    """
    grid, geometry = source.grid, model.geometry
    tile = min(grid, config.tile or geometry.fixed_output or _default_tile(grid, geometry.stride))
    out = np.empty((3, grid, grid, grid), np.float32)
    for block in grid_blocks(grid, max(tile, _BLOCK_CELLS // tile * tile)):
        x, y, z = (
            slice(first, first + length)
            for first, length in zip(block.origin, block.shape, strict=True)
        )
        out[:, x, y, z] = predict_block(model, source, flows, block, tile, config, device)
    return out


def bounding_block(blocks: Sequence[Block]) -> Block:
    """Return the smallest block that holds all of some blocks."""
    low = np.min([block.origin for block in blocks], axis=0)
    high = np.max([np.add(block.origin, block.shape) for block in blocks], axis=0)
    (x, y, z), (nx, ny, nz) = low.tolist(), (high - low).tolist()
    return Block((x, y, z), (nx, ny, nz))


def _haloed_part(tile: Block, region: Block, halo: int) -> tuple[slice, slice, slice]:
    """Return where a tile and its halo lie in the cells read for a region and its halo."""
    x, y, z = (
        slice(first - start, first - start + length + 2 * halo)
        for first, length, start in zip(tile.origin, tile.shape, region.origin, strict=True)
    )
    return x, y, z


def _batches(tiles: list[Block], size: int) -> list[list[Block]]:
    return [tiles[start : start + size] for start in range(0, len(tiles), size)]
