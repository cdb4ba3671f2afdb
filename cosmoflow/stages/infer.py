"""From fields and a model to the velocity of the whole box."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from cosmoflow.config.settings import InferConfig
from cosmoflow.events import StageFinished
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.precision import autocast, best_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.samples import FieldSource, read_inputs
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.stages.linear import ensure_linear_velocity
from cosmoflow.stages.models import check_fits, load_model, model_digest
from cosmoflow.stages.run import Plan, Progress, Run, discarding_failures, start_engine
from cosmoflow.storage.fields import (
    FieldStore,
    create_fields,
    finished_shards,
    open_fields,
    write_block,
)
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.urls import absolute, open_group_for_writing

_FLOPS_PER_SECOND = 1.5e11
_LARGEST_DEFAULT_TILE = 96


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
    scales: tuple[int, ...],
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
    scales : tuple of int
        Which stored linear velocities the model takes.
    block : Block
        Cells to predict.
    tile : int
        Output cells per axis of one forward pass.
    config : InferConfig
        Batch and precision.
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
    density, linear = read_inputs(source, scales, region, model.geometry.halo)
    for group in _batches(tiles, config.batch):
        parts = [_haloed_part(one, region, model.geometry.halo) for one in group]
        with autocast(config.precision, device):
            predicted = model(
                torch.stack([density[x, y, z] for x, y, z in parts]).to(device),
                torch.stack([linear[..., x, y, z] for x, y, z in parts]).to(device),
            )
        for one, values in zip(group, predicted.cpu().numpy(), strict=True):
            inside, part = overlap(block, one)
            out[(slice(None), *inside)] = values[(slice(None), *part)]
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


def plan_infer(fields: str, model_url: str, run: Run) -> Plan:
    """Say what :func:`infer` would do."""
    return _plan(FieldStore(fields), load_model(model_url), model_url, run)


def _plan(store: FieldStore, model: VelocityModel, model_url: str, run: Run) -> Plan:
    check_fits(model, model_url, store)
    config = run.settings.infer
    layout = Layout.choose(config, model.geometry, store)
    per_axis = -(-layout.shard // layout.tile)
    shards = len(grid_blocks(store.grid, layout.shard))
    tiles = shards * per_axis**3
    cells = model.geometry.input_cells(layout.tile) ** 3
    region = model.geometry.input_cells(per_axis * layout.tile) ** 3
    channels = 1 + 3 * len(model.smoothing)
    flops = count_flops(model.spec.architecture, layout.tile)
    widest = max(p.shape[0] for p in model.network.parameters() if p.dim() == 5)
    return Plan(
        stage="infer",
        tasks=shards,
        unit="shards",
        # The shard's output and its inputs with halo, and of a batch the inputs and three of the
        # widest activations at full resolution, alive at once.
        worker_memory=3 * 4 * layout.shard**3
        + 4 * channels * region
        + config.batch * cells * 4 * (2 * channels + 3 * min(widest, 64)),
        read=shards * region * channels * 4,
        written=store.grid**3 * 12,
        cpu_seconds=tiles * flops / _FLOPS_PER_SECOND,
        details={
            "grid": store.grid,
            "shard": layout.shard,
            "tile": layout.tile,
            "halo": model.geometry.halo,
            "tiles": tiles,
            "flops": tiles * flops,
            "input_cells_per_output_cell": round(cells / layout.tile**3, 3),
        },
    )


def infer(fields: str, out: str, model: str, run: Run | None = None) -> xr.Dataset:
    """Predict the velocity (or momentum) of a whole box.

    Parameters
    ----------
    fields : str
        URL of a fields store with ``density``.
    out : str
        URL of the fields store to write.
    model : str
        URL of a model folder.
    run : Run, optional
        Settings (section ``infer``), engine, progress.

    Returns
    -------
    xr.Dataset
        The model's target, lazy.

    Raises
    ------
    DataError
        The model was made for other cells, or a store or model is damaged.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    config = run.settings.infer
    fields, out, model = absolute(fields), absolute(out), absolute(model)
    check_output(out, run.existing, [fields, model])
    store, network = FieldStore(fields), load_model(model)
    store.require("density")
    check_fits(network, model, store, run.listener)
    plan = _plan(store, network, model, run)
    target = network.spec.target
    layout = Layout.choose(config, network.geometry, store)
    scales = ensure_linear_velocity(fields, network.smoothing, run.listener)
    metadata = replace(
        store.metadata,
        provenance=make_provenance(
            "infer",
            # Tiles and batches change a result by rounding alone: a run that did not fit into
            # memory may be resumed with smaller ones.
            {"infer": config.model_dump(mode="json", exclude={"tile", "batch"})},
            {"fields": store.digest, "model": model_digest(model)},
        ),
    )
    blocks = grid_blocks(store.grid, layout.shard)
    chunk = max(size for size in range(1, 65) if layout.shard % size == 0)
    finished = create_fields(
        out,
        metadata,
        store.grid,
        (target,),
        shard=layout.shard,
        chunk=chunk,
        existing=run.existing,
    )
    todo = np.flatnonzero(~finished).tolist()
    progress = Progress(run.listener, "infer", len(blocks), "shards", len(blocks) - len(todo))
    if todo:
        with discarding_failures(out, begun_before=run.existing == "resume"):
            engine = start_engine(
                run, plan, remedy="a smaller infer.tile, infer.shard or infer.batch"
            )
            engine.map(
                partial(make_predictor, fields, model, scales, out, layout, config),
                todo,
                lambda shard, result: progress.advance(),
                workers=run.settings.engine.workers,
            )
    if not finished_shards(out).all():
        raise RuntimeError(f"{out}: the actors ended with unfinished shards")
    finish_group(open_group_for_writing(out))
    run.listener(StageFinished("infer", {"out": out, **plan.details}))
    return open_fields(out)


def make_predictor(
    fields: str,
    model_url: str,
    scales: tuple[int, ...],
    out: str,
    layout: Layout,
    config: InferConfig,
) -> Callable[[int], int]:
    """Load the model in a worker and return what predicts and writes one shard there."""
    device = best_device()
    model = load_model(model_url).to(device)
    model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    store = FieldStore(fields)
    blocks = grid_blocks(store.grid, layout.shard)

    def predict_shard(shard: int) -> int:
        values = predict_block(model, store, scales, blocks[shard], layout.tile, config, device)
        write_block(out, blocks[shard], shard, {model.spec.target: values})
        return shard

    return predict_shard
