"""What a worker of `infer` keeps of the chunks that it has read, for the blocks that follow.

The only worker of a box goes through it layer by layer, with z the fastest, and keeps the chunks of
a layer that the next one needs. Several workers each walk along z, through a column of blocks, and
keep its last and its next shard. From a bucket whole shards along z are read together, so that the
halo of a block along z takes no requests of its own: its chunks are those of the next block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from cosmoflow.model.velocity import VelocityModel
from cosmoflow.stages.infer.request import Work
from cosmoflow.stages.infer.tiles import Sides
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.places import local_path

CACHE_COST: Final = 2
"""Memory per byte of cache: released chunks leave holes too small for larger buffers."""

_USEFUL_LAYER: Final = 1 << 30
"""Bytes of a layer's chunks beyond which the only worker gains almost nothing."""


def choose_cache(
    work: Work, store: StoredBox, models: Sequence[VelocityModel], spare: int, *, workers: int
) -> tuple[int, Sides]:
    """Return the bytes that a worker keeps, and the cells of the pieces that it reads together.

    Parameters
    ----------
    work : Work
        The request, with its layout.
    store : StoredBox
        The fields that are read.
    models : sequence of VelocityModel
        The models that need them.
    spare : int
        Bytes of a worker that nothing else needs.
    workers : int
        Number of workers.
    """
    chunk, most = store.chunk, spare // CACHE_COST
    halo = max(model.geometry.halo for model in models) + work.halo
    if halo == 0 and work.layout.shard % chunk == 0:
        return 0, (chunk, chunk, chunk)
    channels = input_channels(models)
    if workers > 1 or local_path(store.url) is None:
        column = 4 * channels * _column_cells(work, store, halo)
        if column <= most:
            return column, (chunk, chunk, store.shard)
    layer = min(4 * channels * _layer_cells(work, store, halo), _USEFUL_LAYER)
    return min(most, layer), (chunk, chunk, chunk)


def input_channels(models: Sequence[VelocityModel]) -> int:
    """Return the numbers a cell that models read."""
    return 1 + 3 * max(model.flows for model in models)


def _column_cells(work: Work, store: StoredBox, halo: int) -> int:
    """Return the cells of a block and its halo in whole chunks, and of the shards above and below.

    Blocks and shards need not begin at the same cells.
    """
    wide = -(-halo // store.chunk) * store.chunk + (-work.layout.shard) % store.chunk
    x, y, z = work.extent
    depth = -(-z // store.shard) * store.shard + 2 * store.shard
    sides = (x + 2 * wide, y + 2 * wide, depth + (-work.layout.shard) % store.shard)
    return math.prod(min(side, store.grid) for side in sides)


def _layer_cells(work: Work, store: StoredBox, halo: int) -> int:
    """Return the cells of the chunks that a layer of blocks reads, and the next layer reuses."""
    thickness = (-(-(work.extent[0] + 2 * halo) // store.chunk) + 1) * store.chunk
    cells = min(thickness, store.grid)
    for side in work.region.shape[1:]:
        cells *= min(side + 2 * (halo + store.chunk), store.grid)
    return cells
