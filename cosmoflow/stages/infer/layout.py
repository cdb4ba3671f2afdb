"""Cutting a box into blocks and tiles for `infer`, within the memory of a worker."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from cosmoflow.engine.base import USEFUL_CORES
from cosmoflow.engine.memory import FREE_SHARE
from cosmoflow.model.footprint import count_activation_bytes
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.stages import costs
from cosmoflow.stages.infer.caches import CACHE_COST, choose_cache, input_channels
from cosmoflow.stages.infer.request import Work
from cosmoflow.stages.infer.tiles import Layout, Sides, TileGrid, cut_tiles
from cosmoflow.stages.run import PASS_DEVICE_SHARE, USEFUL_MEMORY, Run, memory_here
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.together import AT_ONCE
from cosmoflow.storage.variables import count_parts

_TASKS, _TASKS_ALONE = 8, 4
"""Least tasks that each of several workers should have, for progress, balance and resuming, and
that the only one should have: larger blocks have smaller halos."""

_CUTS = 16
"""Most tiles per axis of a block, unless the settings require more."""

_BATCH_CELLS = 64**3
"""Output cells from which on a forward pass reaches full speed: smaller tiles are batched."""

_LARGEST_BATCH = 8

_LARGEST_PASS = {"float32": 192**3, "bfloat16": 2 * 192**3}
"""Output cells beyond which new memory costs a CPU more than the smaller halo share saves."""

_ACTIVATIONS = 1.3
"""Memory of a forward pass over that of its tensors, beside :data:`_PASS_OVERHEAD`: 1.27 was
measured on a CPU, for tiles of 64 by 128 by 128 and of 128^3 cells."""

_PASS_OVERHEAD = 64 << 20
"""Further bytes of a forward pass, of any size."""

_FLOAT32_ON_GPU = 2.5
"""The ratio :data:`_ACTIVATIONS` in float32 on a GPU, where cuDNN copies layers to another layout.
1.6 was measured when a pass held 1.5 times the tensors, so 2.4 is expected."""

_WRITTEN_AT_ONCE = 1 << 24
"""Numbers of small shards that a worker may write side by side."""

_ENCODING = 1.1
"""Memory of a compressed shard over that of its numbers: such as cannot be compressed."""


def one_local_worker(run: Run) -> bool:
    """Return whether this process would be the only worker, so that Ray gains nothing."""
    several_gpus = torch.cuda.is_available() and torch.cuda.device_count() > 1
    return run.settings.engine.address is None and count_workers(run) == 1 and not several_gpus


def count_workers(run: Run) -> int:
    """Return the approximate number of workers."""
    if run.settings.engine.workers is not None:
        return run.settings.engine.workers
    if run.settings.engine.address is None:
        return -(-len(os.sched_getaffinity(0)) // USEFUL_CORES)
    engine = run.session.engine(0.0)
    each = engine.share(1 << 20, most=USEFUL_CORES, memory=0, accelerated=True)
    # Workers on GPUs are limited by the GPUs; the cores of other nodes add none.
    return max(1, engine.gpus // each.gpus if each.gpus else engine.cpus // each.cpus)


def _memory_allowed(run: Run) -> int:
    """Return the bytes that a planned worker may use."""
    config = run.settings.engine
    if config.address is None:
        found = memory_here(run, workers=count_workers(run))
    else:
        found = memory_here(run, free=run.session.engine(0.0).memory)
    return min(found, USEFUL_MEMORY) if config.memory is None else found


def choose_layout(
    work: Work, store: StoredBox, models: Sequence[VelocityModel], run: Run
) -> Layout:
    """Return the layout with the least halo that fits into memory, or else the smallest.

    Raises
    ------
    ConfigError
        A network does not support the requested tile.
    """
    shard = min(work.config.shard or store.shard, store.grid)
    allowed, workers = _memory_allowed(run), count_workers(run)
    room = max(allowed, _memory_beside(run))
    works: list[Work] = []
    least = _TASKS_ALONE if workers == 1 else _TASKS * workers
    for block in _blocks(shard, thin=workers > 1):
        tasks = _count_tasks(work.region, block)
        if max(block) == shard or (max(block) <= store.grid and tasks >= least):
            works += _cut(work, models, shard, block)
    if work.config.tile is None and work.device_memory is None:
        most = _LARGEST_PASS[work.config.precision]
        works = [one for one in works if _largest_pass(one, models) <= most] or works
    works.sort(key=lambda one: (_halo_work(one, models), _count_passes(one, models)))
    for one in works:
        need = worker_memory(one, models)
        if need > allowed or not _fits_device(one, models):
            continue
        cache, piece = choose_cache(one, store, models, room - need, workers=workers)
        x, _, z = one.layout.block
        # Without room for a column, the halo along z is what takes requests.
        if z >= x or not cache or piece[2] > store.chunk:
            return replace(one.layout, cache=cache, piece=piece, columns=workers > 1)
    return replace(works[-1].layout, columns=workers > 1)


def _memory_beside(run: Run) -> int:
    """Return the bytes of a cluster's worker if all that a node can hold are equal.

    Larger blocks than :data:`USEFUL_MEMORY` holds gain nothing, but larger caches do.
    """
    config = run.settings.engine
    if config.address is None or config.memory is not None:
        return 0
    engine = run.session.engine(0.0)
    each = engine.share(1 << 20, most=USEFUL_CORES, memory=0, accelerated=True)
    return int(FREE_SHARE * engine.memory_per_core * each.cpus)


def _fits_device(work: Work, models: Sequence[VelocityModel]) -> bool:
    """Return whether a GPU holds what a block needs."""
    there = work.device_memory
    return there is None or device_memory(work, models) <= PASS_DEVICE_SHARE * there


def _count_tasks(region: Block, block: Sides) -> int:
    """Return the number of blocks that contain cells of a region."""
    return math.prod(
        (origin + length - 1) // side - origin // side + 1
        for origin, length, side in zip(region.origin, region.shape, block, strict=True)
    )


def _blocks(shard: int, *, thin: bool) -> Iterator[Sides]:
    """Yield blocks of one shard or several, also thin ones where workers walk along z."""
    for count in range(4):
        x, y, z = (shard * (2 if axis < count else 1) for axis in range(3))
        if thin and x > z:
            yield (x, y, z)
        yield (z, y, x)


def _cut(work: Work, models: Sequence[VelocityModel], shard: int, block: Sides) -> Iterator[Work]:
    """Yield the work with each layout of a block: one tile, or several equal ones."""
    config = work.config
    if config.tile is not None:
        for model in models:
            model.geometry.check_output(config.tile, "infer.tile")
    fixed = {model.geometry.fixed_output for model in models}
    tiles = {size for size in fixed if size is not None}
    if None in fixed:
        stride = math.lcm(*(model.geometry.stride for model in models))
        # The halo of derivatives around the block also starts on the lattice.
        cells = -(-work.halo // stride) - (-(max(block) + work.halo) // stride)
        cuts = range(1, cells + 1 if config.tile is not None else min(cells, _CUTS) + 1)
        tiles |= {-(-cells // count) * stride for count in cuts}
    for tile in sorted(tiles):
        if config.tile is None or tile <= config.tile:
            batch = config.batch or min(_LARGEST_BATCH, max(1, _BATCH_CELLS // tile**3))
            layout = Layout(shard, block, tile, batch, config.overlap)
            yield replace(work, layout=layout)


def _tiles(work: Work, model: VelocityModel) -> TileGrid:
    """Return the tiles of a model that cover one block."""
    return cut_tiles(grow(Block((0, 0, 0), work.extent), work.halo), model.geometry, work.layout)


def _largest_pass(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the most output cells of a forward pass."""
    return work.layout.batch * max(math.prod(_tiles(work, model).shape) for model in models)


def _count_passes(work: Work, models: Sequence[VelocityModel]) -> float:
    """Return the forward passes per cell."""
    passes = sum(-(-len(_tiles(work, model)) // work.layout.batch) for model in models)
    return passes / math.prod(work.extent)


def _halo_work(work: Work, models: Sequence[VelocityModel]) -> float:
    """Return a measure of the work per cell, halos included."""
    total = 0.0
    for model in models:
        tiles, halo = _tiles(work, model), model.geometry.halo
        # Unpadded layers process from the whole halo down to none: half of it on average.
        total += len(tiles) * math.prod(side + halo for side in tiles.shape)
    return total / math.prod(work.extent)


def device_memory(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the bytes on a GPU: a forward pass, the blocks around it, and the weights.

    Of blocks, the inputs of two are there, one of them on its way, and the outputs of two.
    """
    vectors = 3 * (1 + work.config.spread + work.config.errors)
    numbers = 2 * input_channels(models) * _region_cells(work, models)
    numbers += (2 * vectors + _summed(work, models)) * _block_cells(work)
    return pass_memory(work, models) + 4 * (numbers + _weights(models))


def pass_memory(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the bytes that a forward pass needs on its device."""
    need = 0
    for model in models:
        tiles = _tiles(work, model)
        channels = 1 + 3 * model.flows
        copied = work.device_memory is not None and work.config.precision == "float32"
        factor = _FLOAT32_ON_GPU if copied else _ACTIVATIONS
        # Tiles, their channels in both layouts, and outputs; the turned ones, and the mean.
        fields = 3 * channels + 6 + (0 if work.config.symmetries == 1 else channels + 6)
        activations = count_activation_bytes(
            model.spec.architecture, tiles.shape, work.config.precision
        )
        cells = math.prod(side + 2 * model.geometry.halo for side in tiles.shape)
        batch = min(work.layout.batch, len(tiles))
        overhead = _PASS_OVERHEAD if activations else 0
        need = max(need, batch * int(factor * activations + 4 * fields * cells) + overhead)
    return need


def worker_memory(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the bytes of a worker that reads one task, predicts another and writes a third."""
    layout, config = work.layout, work.config
    parts = [count_parts(name) for name in work.variables]
    # The inputs twice, and the density of the block that fields are derived from.
    inputs = (2 * input_channels(models) + bool(config.fields)) * _region_cells(work, models)
    # Outputs of two blocks, and their rounded copies.
    copies = 2 + (config.rounding is not None)
    outputs = (copies * sum(parts) + _summed(work, models)) * _block_cells(work)
    encoding = _ENCODING * max(parts) * layout.shard**3 * shards_at_once(work)
    numbers = inputs + outputs + encoding + 2 * _weights(models)
    there = pass_memory(work, models) if work.device_memory is None else 0
    return int(4 * numbers) + CACHE_COST * layout.cache + there + costs.BLOCK_OVERHEAD


def shards_at_once(work: Work) -> int:
    """Return how many shards of a block a worker may write side by side."""
    layout = work.layout
    there = math.prod(-(-side // layout.shard) for side in layout.block)
    numbers = max(map(count_parts, work.variables)) * layout.shard**3
    return max(1, min(there, AT_ONCE, _WRITTEN_AT_ONCE // numbers))


def _region_cells(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the most cells that a block reads."""
    return max(
        math.prod(grow(_tiles(work, model).bounds, model.geometry.halo).shape) for model in models
    )


def _block_cells(work: Work) -> int:
    """Return the most cells that are predicted at once, the halo of derivatives included."""
    return math.prod(side + 2 * work.halo for side in work.extent)


def _summed(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the numbers a cell of means and squares while those of models are summed."""
    return 6 * (len(models) > 1) + 9 * work.config.spread + 6 * work.config.errors


def _weights(models: Sequence[VelocityModel]) -> int:
    return sum(p.numel() for model in models for p in model.parameters())
