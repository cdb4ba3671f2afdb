"""Plans of `infer`: memory, bytes, operations, seconds."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from cosmoflow.config.networks import InferConfig
from cosmoflow.model.precision import autocast, best_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, axis_blocks, bounding_block, grow
from cosmoflow.stages import costs
from cosmoflow.stages.infer.layout import worker_memory
from cosmoflow.stages.infer.request import Work
from cosmoflow.stages.infer.requests import count_traffic
from cosmoflow.stages.infer.tiles import cut_pieces
from cosmoflow.stages.run import Plan
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.variables import count_parts

_CALIBRATION_CELLS = 64
"""Largest tile, in cells per axis, that is timed to measure the speed of this machine."""

_ENDLESS = 1 << 12
"""Cells per axis of a tile so large that its halo is negligible."""


def measure_rate(model: VelocityModel, config: InferConfig, tile: int) -> float:
    """Return the FLOPs per second of a model on this machine, the best of two small passes."""
    geometry = model.geometry
    side = geometry.fixed_output or min(tile, _CALIBRATION_CELLS)
    flops = count_flops(model.spec.architecture, side)
    if flops == 0:
        return math.inf
    device = best_device()
    model = model.to(device)
    model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
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


@dataclass(frozen=True, kw_only=True)
class InferPlan(Plan):
    """The plan of `infer`; its core-seconds assume networks on CPUs.

    Parameters
    ----------
    grid : int
        Cells per axis of the box.
    region : list
        First cell of the predicted region, and its cells along each axis.
    shard, tile, batch : int
        Cells per axis of a shard and of a tile, and tiles of a forward pass.
    block : list of int
        Cells along each axis that a task predicts.
    halo : int
        Cells around a tile that the networks read.
    tiles : int
        Tiles of all tasks and models.
    precision : str
        Arithmetic of the networks.
    flops : float
        Total operations of the networks.
    flops_over_one_tile : float
        Operations per cell over those in one tile of the size of the box.
    seconds_here : float, optional
        Seconds on this machine, from a timed forward pass; None if none was timed.
    moving_seconds : float
        Core-seconds of reading and writing alone.
    """

    grid: int
    region: list[list[int]]
    shard: int
    block: list[int]
    tile: int
    batch: int
    halo: int
    tiles: int
    precision: str
    flops: float
    flops_over_one_tile: float
    seconds_here: float | None = None
    moving_seconds: float = field(repr=False)


def plan_work(
    work: Work,
    box: StoredBox,
    models: Sequence[VelocityModel],
    *,
    measured: bool = True,
    workers: int = 1,
) -> InferPlan:
    """Count tasks, bytes, requests, operations and seconds.

    Parameters
    ----------
    measured : bool
        Whether to time a small pass.
    workers : int
        Number of workers, each with a cache of its own.
    """
    layout, config = work.layout, work.config
    axes = [_cut_axis(work, models, box.grid, axis) for axis in range(3)]
    tiles = read = tasks = 0
    flops, passing = 0.0, 0.0
    rates = [measure_rate(model, config, layout.tile) if measured else math.inf for model in models]
    for count, block in _kinds(axes):
        tasks += count
        for model, rate in zip(models, rates, strict=True):
            pieces = cut_pieces(block, model.geometry, layout, box.grid)
            for piece in pieces:
                passes = count * len(piece.tiles)
                each = count_flops(model.spec.architecture, piece.tiles.shape)
                operations = config.symmetries * passes * each
                tiles += passes
                flops += operations
                passing += operations / rate
            bounds = bounding_block([piece.tiles.bounds for piece in pieces])
            haloed = grow(bounds, model.geometry.halo)
            read += 4 * (1 + 3 * model.flows) * count * math.prod(haloed.shape)
    parts = sum(count_parts(name) for name in work.variables) + 3 * config.restore_power
    written = 4 * parts * math.prod(axis.written for axis in axes)
    moving = (read + written) / 4 * costs.MOVE_NUMBER
    cores = len(os.sched_getaffinity(0))
    cells = math.prod(work.region.shape)
    traffic = count_traffic(work, box, models, workers)
    return InferPlan(
        stage="infer",
        tasks=tasks,
        unit="blocks",
        worker_memory=worker_memory(work, models),
        read=4 * traffic.numbers,
        written=written,
        cpu_seconds=moving + flops / costs.CPU_FLOPS[config.precision],
        requests=traffic.requests,
        grid=box.grid,
        region=[list(work.region.origin), list(work.region.shape)],
        shard=layout.shard,
        block=list(layout.block),
        tile=layout.tile,
        batch=layout.batch,
        halo=max(model.geometry.halo for model in models),
        tiles=tiles,
        precision=config.precision,
        flops=flops,
        flops_over_one_tile=round(_over_one_tile(models, config, flops / cells), 3),
        seconds_here=round(passing + moving / cores, 1) if measured else None,
        moving_seconds=moving,
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """Intervals along an axis: those cut alike, as one ``(origin, length)`` and their number."""

    kinds: dict[tuple[int, int], int]
    written: int
    """Cells of the shards that tasks write."""


def _cut_axis(work: Work, models: Sequence[VelocityModel], grid: int, axis: int) -> _Axis:
    """Find the intervals along an axis; a large box has many, but few distinct ones."""
    layout = work.layout
    first = work.region.origin[axis]
    last = first + work.region.shape[axis]
    # Lattices of tiles start at cell 0, so intervals that start at the same position modulo the
    # common period of the lattices are cut alike.
    steps = [
        model.geometry.stride
        if model.geometry.fixed_output is None
        else model.geometry.fixed_output - layout.overlap
        for model in models
    ]
    period = math.lcm(*steps)
    representatives: dict[tuple[int, int], tuple[int, int]] = {}
    kinds: dict[tuple[int, int], int] = {}
    written = 0
    for start, length in axis_blocks(grid, layout.block[axis]):
        low, high = max(start, first), min(start + length, last)
        if low >= high:
            continue
        inside = [
            size
            for origin, size in axis_blocks(length, layout.shard)
            if start + origin < high and start + origin + size > low
        ]
        written += sum(inside)
        interval = (low - work.halo, high - low + 2 * work.halo)
        # An interval across the border is special: the lattice may not close there.
        crosses = interval[0] < 0 or sum(interval) > grid
        alike = (interval[0] if crosses else interval[0] % period, interval[1])
        interval = representatives.setdefault(alike, interval)
        kinds[interval] = kinds.get(interval, 0) + 1
    return _Axis(kinds, written)


def _kinds(axes: Sequence[_Axis]) -> Iterator[tuple[int, Block]]:
    """Yield the number of blocks in each group that is cut alike, and one block of the group."""
    for (x, nx), (y, ny), (z, nz) in itertools.product(*(axis.kinds.items() for axis in axes)):
        yield nx * ny * nz, Block((x[0], y[0], z[0]), (x[1], y[1], z[1]))


def _over_one_tile(
    models: Sequence[VelocityModel], config: InferConfig, flops_per_cell: float
) -> float:
    """Return the operations per cell over those in one very large tile."""
    least = 0.0
    for model in models:
        side = model.geometry.fixed_output or _ENDLESS
        least += count_flops(model.spec.architecture, side) / side**3
    return flops_per_cell / (config.symmetries * least) if least else 1.0
