"""What `infer` is going to need: memory, bytes, operations, seconds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

import torch

from cosmoflow.config.settings import InferConfig
from cosmoflow.model.precision import autocast, best_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.tiles import grid_blocks, grow
from cosmoflow.stages.infer_layout import worker_memory
from cosmoflow.stages.infer_work import Work, wanted_block
from cosmoflow.stages.run import Plan
from cosmoflow.stages.tiling import cut_tiles
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.variables import count_parts

_BYTES_PER_SECOND = 6e8
"""Of reading and writing compressed chunks on two cores."""

_GUESSED_RATE = 1.5e11
"""FLOPs a second where nobody needs to know better."""

_CALIBRATION_CELLS = 64
"""Largest tile, per axis, that is timed to know how fast this machine is."""

_ENDLESS = 1 << 12
"""Cells of a tile beside which its halo is nothing."""


def measure_rate(model: VelocityModel, config: InferConfig, tile: int) -> float:
    """Return the FLOPs a second of a model on this machine: of the best of two small passes."""
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


def plan_work(
    work: Work, store: FieldStore, models: Sequence[VelocityModel], *, measured: bool = True
) -> Plan:
    """Count tasks, bytes, operations and seconds, these by timing a small pass or by guess."""
    layout, config = work.layout, work.config
    groups = work.tasks(store.grid, [True] * len(grid_blocks(store.grid, layout.shard)))
    shards = grid_blocks(store.grid, layout.shard)
    tiles = read = 0
    flops, seconds = 0.0, 0.0
    rates = [
        measure_rate(model, config, layout.tile) if measured else _GUESSED_RATE for model in models
    ]
    for group in groups:
        block = wanted_block([shards[shard] for shard in group], work.region, work.halo)
        for model, rate in zip(models, rates, strict=True):
            cut = cut_tiles(block, model.geometry, layout)
            operations = (
                config.symmetries * len(cut) * count_flops(model.spec.architecture, cut.shape)
            )
            tiles += len(cut)
            flops += operations
            seconds += operations / rate
            haloed = grow(cut.bounds, model.geometry.halo)
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
            "block": list(layout.block),
            "tile": layout.tile,
            "batch": layout.batch,
            "halo": max(model.geometry.halo for model in models),
            "tiles": tiles,
            "precision": config.precision,
            "flops": flops,
            "flops_over_one_tile": round(_over_one_tile(models, config, flops / cells), 3),
            **({"seconds_here": round(seconds, 1)} if measured else {}),
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
