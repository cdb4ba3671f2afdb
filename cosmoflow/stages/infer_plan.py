"""How `infer` cuts a box, and what that needs: memory, bytes, operations, seconds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from cosmoflow.config.settings import InferConfig
from cosmoflow.engine import available_memory
from cosmoflow.model.footprint import count_activation_bytes
from cosmoflow.model.precision import autocast, best_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.tiles import grid_blocks, grow
from cosmoflow.stages.infer_work import Work, wanted_block
from cosmoflow.stages.models import Box
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.tiling import Layout, bounding_block, cut_tiles
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.variables import count_parts

USEFUL_MEMORY = 8 << 30
"""Bytes of a worker beyond which larger tiles gain next to nothing."""

USEFUL_CORES = 8
"""Cores that one worker makes good use of."""

_LARGEST_BLOCK = 4
"""Shards per axis of what a task does at most."""

_TASKS = 4
"""Tasks that each worker should have at least, for progress, balance and resuming."""

_BATCH_CELLS = 64**3
"""Output cells from which on a forward pass is as fast as any: smaller tiles go in batches."""

_LARGEST_BATCH = 8

_ACTIVATIONS = 1.3
"""Memory of a forward pass over that of its tensors: the most that was measured on a CPU."""

_OVERHEAD = 96 << 20
"""Bytes of a worker that do not depend on the grid: buffers of the store, of threads, of malloc."""

_ENCODING = 4.5
"""Numbers held for each number of a shard while it is compressed."""

_BYTES_PER_SECOND = 6e8
"""Of reading and writing compressed chunks on two cores."""

_CALIBRATION_CELLS = 64
"""Largest tile, per axis, that is timed to know how fast this machine is."""

_ENDLESS = 1 << 12
"""Cells of a tile beside which its halo is nothing."""


class Sharded(Box, Protocol):
    """A box that is kept in shards."""

    @property
    def shard(self) -> int:
        """Cells per axis of a shard."""


def one_local_worker(run: Run) -> bool:
    """Tell whether this process would be the only worker, which Ray makes no faster."""
    return run.settings.engine.address is None and _local_workers(run) == 1


def _local_workers(run: Run) -> int:
    return run.settings.engine.workers or max(1, len(os.sched_getaffinity(0)) // USEFUL_CORES)


def _memory_allowed(run: Run) -> int:
    """Return the bytes that a worker is planned for."""
    config = run.settings.engine
    if config.memory is not None:
        return int(config.memory)
    if config.address is not None:
        return min(run.session.engine(0.0).memory // 2, USEFUL_MEMORY)
    # Half of what there is: a person at a laptop has other things open.
    return min(available_memory() // 2 // _local_workers(run), USEFUL_MEMORY)


def choose_layout(work: Work, store: Sharded, models: Sequence[VelocityModel], run: Run) -> Layout:
    """Return the layout with the least halo that memory takes, or else the smallest.

    Raises
    ------
    ConfigError
        A tile was asked for that a network does not have.
    """
    shard = min(work.config.shard or store.shard, store.grid)
    allowed, workers = _memory_allowed(run), _local_workers(run)
    candidates: list[Layout] = []
    for span in range(1, _LARGEST_BLOCK + 1):
        tasks = (-(-store.grid // (span * shard))) ** 3
        if span == 1 or (span * shard <= store.grid and tasks >= _TASKS * workers):
            candidates += _cut(work, models, shard, span * shard)
    works = [replace(work, layout=layout) for layout in candidates]
    need = {one.layout: worker_memory(one, models) for one in works}
    fitting = [one for one in works if need[one.layout] <= allowed]
    if fitting:
        return min(fitting, key=lambda one: _halo_work(one, models)).layout
    return min(works, key=lambda one: need[one.layout]).layout


def _cut(work: Work, models: Sequence[VelocityModel], shard: int, block: int) -> Iterator[Layout]:
    """Yield the layouts of a block: one tile, or as many equal ones as the settings ask for."""
    asked, overlap = work.config.tile, work.config.overlap
    tiles: set[int] = set()
    for geometry in (model.geometry for model in models):
        if asked is not None:
            geometry.check_output(asked, "infer.tile")
        tiles.add(geometry.fixed_output or 0)
    stride = math.lcm(*(model.geometry.stride for model in models))
    cells = -(-(block + 2 * work.halo) // stride)
    tiles |= {-(-cells // count) * stride for count in range(1, cells + 1)}
    for tile in sorted(tiles - {0}):
        if asked is None or tile <= asked:
            batch = work.config.batch or min(_LARGEST_BATCH, max(1, _BATCH_CELLS // tile**3))
            yield Layout(shard, block, tile, batch, overlap)


def _covering(work: Work, model: VelocityModel) -> tuple[int, int]:
    """Return how many tiles cover a whole block, and the cells of one per axis."""
    side = work.layout.block
    tiles = cut_tiles(
        grow(Block((0, 0, 0), (side, side, side)), work.halo), model.geometry, work.layout
    )
    return len(tiles), tiles[0].shape[0]


def _halo_work(work: Work, models: Sequence[VelocityModel]) -> float:
    """Return about how much work there is for a cell, halos included."""
    total = 0.0
    for model in models:
        tiles, side = _covering(work, model)
        # Unpadded layers see from all of the halo to none of it: half of it in the mean.
        total += tiles * (side + model.geometry.halo) ** 3
    return total / work.layout.block**3


def worker_memory(work: Work, models: Sequence[VelocityModel]) -> int:
    """Return the bytes of a worker that reads one task, predicts another and writes a third."""
    layout, config = work.layout, work.config
    regions, passes = [], []
    for model in models:
        geometry = model.geometry
        tiles, side = _covering(work, model)
        along = round(tiles ** (1 / 3))
        step = side - (layout.overlap if geometry.fixed_output else 0)
        regions.append(side + (along - 1) * step + 2 * geometry.halo)
        channels = 1 + 3 * model.flows
        batch = min(layout.batch, tiles)
        # Tiles cut out, their channels in both layouts, what comes out; turned, and the mean.
        fields = 3 * channels + 6 + (0 if config.symmetries == 1 else channels + 6)
        activations = count_activation_bytes(model.spec.architecture, side, config.precision)
        cells = geometry.input_cells(side) ** 3
        passes.append(batch * int(_ACTIVATIONS * activations + 4 * fields * cells))
    flows = max(model.flows for model in models)
    inputs = (1 + 3 * flows) * max(regions) ** 3
    parts = sum(count_parts(name) for name in work.variables)
    # Means of models, and squares, while they are added up.
    held = 3 * (len(models) > 1) + 9 * config.spread
    block = (layout.block + 2 * work.halo) ** 3
    largest = max(count_parts(name) for name in work.variables)
    encoding = _ENCODING * largest * layout.shard**3
    weights = sum(p.numel() for model in models for p in model.parameters())
    numbers = 2 * inputs + (2 * parts + held) * block + encoding + 2 * weights
    return int(4 * numbers) + max(passes) + _OVERHEAD


def measure_rate(model: VelocityModel, config: InferConfig, tile: int) -> float:
    """Return the FLOPs a second of a model on this machine: of the best of two small passes."""
    geometry = model.geometry
    side = geometry.fixed_output or min(tile, _CALIBRATION_CELLS)
    flops = count_flops(model.spec.architecture, side)
    if flops == 0:
        return math.inf
    device = best_device()
    model = model.to(device)
    cells = geometry.input_cells(side)
    density = torch.ones((1, cells, cells, cells), device=device)
    flows = torch.zeros((1, model.flows, 3, cells, cells, cells), device=device)
    seconds = math.inf
    with torch.inference_mode(), autocast(config.precision, device):
        for _ in range(2):
            begun = time.perf_counter()
            model(density, flows).cpu()
            seconds = min(seconds, time.perf_counter() - begun)
    return flops / seconds


def plan_work(work: Work, store: FieldStore, models: Sequence[VelocityModel]) -> Plan:
    """Count tasks, bytes, operations and, by a small measurement, seconds."""
    layout, config = work.layout, work.config
    groups = work.tasks(store.grid, [True] * len(grid_blocks(store.grid, layout.shard)))
    shards = grid_blocks(store.grid, layout.shard)
    tiles = read = 0
    flops, seconds = 0.0, 0.0
    rates = [measure_rate(model, config, layout.tile) for model in models]
    for group in groups:
        block = wanted_block([shards[shard] for shard in group], work.region, work.halo)
        for model, rate in zip(models, rates, strict=True):
            cut = cut_tiles(block, model.geometry, layout)
            operations = (
                config.symmetries * len(cut) * count_flops(model.spec.architecture, cut[0].shape[0])
            )
            haloed = grow(bounding_block(cut), model.geometry.halo)
            tiles, flops, seconds = (
                tiles + len(cut),
                flops + operations,
                seconds + operations / rate,
            )
            read += 4 * (1 + 3 * model.flows) * math.prod(haloed.shape)
    parts = sum(count_parts(name) for name in work.variables) + 3 * config.restore_power
    written = 4 * parts * sum(math.prod(shards[shard].shape) for group in groups for shard in group)
    seconds += (read + written) / _BYTES_PER_SECOND
    cells = math.prod(work.region.shape)
    return Plan(
        stage="infer",
        tasks=len(groups),
        unit="blocks",
        worker_memory=worker_memory(work, models),
        read=read,
        written=written,
        cpu_seconds=seconds * len(os.sched_getaffinity(0)),
        details={
            "grid": store.grid,
            "region": [list(work.region.origin), list(work.region.shape)],
            "shard": layout.shard,
            "block": layout.block,
            "tile": layout.tile,
            "batch": layout.batch,
            "halo": max(model.geometry.halo for model in models),
            "tiles": tiles,
            "precision": config.precision,
            "flops": flops,
            "flops_over_one_tile": round(_over_one_tile(models, config, flops / cells), 3),
            "seconds_here": round(seconds, 1),
        },
    )


def _over_one_tile(
    models: Sequence[VelocityModel], config: InferConfig, flops_per_cell: float
) -> float:
    """Return the operations for a cell over those in one tile of the size of any box."""
    least = 0.0
    for model in models:
        side = model.geometry.fixed_output or _ENDLESS
        least += count_flops(model.spec.architecture, side) / side**3
    return flops_per_cell / (config.symmetries * least) if least else 1.0
