"""Large boxes for the benchmarks of inference: a small one, repeated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from cosmoflow.model.sources import Flow
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.models import open_model
from cosmoflow.stages.run import Run
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import FILTER, WIENER
from cosmoflow.storage.origins import MADE_FROM, describe_origin
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing


def open_shipped(name: str, fields: str) -> VelocityModel:
    """Return a model that comes with cosmoflow, for a fields store."""
    return open_model(name, FieldStore(fields))


def make_flows(url: str, model: VelocityModel) -> tuple[Flow, ...]:
    """Make the global velocities that a model takes in a fields store."""
    return ensure_flows(url, model.smoothing, model.spec.filter, Run())


def repeat_box(source: str, out: str, times: int, *, shard: int = 128) -> None:
    """Write a box that is a smaller one, ``times`` along each axis, with its Wiener velocity.

    Periodic fields repeated are the fields of the larger box: density and global velocity alike. So
    every prediction of the large box is known from that of the small one.
    """
    store = FieldStore(source)
    grid = store.grid * times
    metadata = replace(store.metadata, box_size=store.metadata.box_size * times)
    digest = store.attributes(WIENER)[FILTER]
    held = {name: store.read(name) for name in ("density", WIENER)}
    create_fields(
        out, metadata, grid, tuple(held), shard=min(shard, grid), chunk=min(64, grid),
        existing="overwrite", attributes={WIENER: {FILTER: digest}},
    )  # fmt: skip
    for index, block in enumerate(grid_blocks(grid, min(shard, grid))):
        write_block(out, block, index, {n: wrap_block(f, block) for n, f in held.items()})
    group = open_group_for_writing(out)
    finish_group(group)
    # The note keeps the flow from being made again. A new flow would differ: a derivative has no
    # Nyquist modes, and those of the small box are not those of the large one.
    made = FieldStore(out)
    origin = describe_origin(made, growth_rate_hubble(made.metadata))
    group[WIENER].attrs[MADE_FROM] = origin


def wrap_block(field: np.ndarray, block: Block) -> np.ndarray:
    """Return a block of a periodic field that is repeated without end."""
    for axis, (origin, length) in zip(
        (-3, -2, -1), zip(block.origin, block.shape, strict=True), strict=True
    ):
        cells = np.arange(origin, origin + length) % field.shape[axis]
        field = np.take(field, cells, axis=axis)
    return field


def worst_difference(url: str, name: str, small: np.ndarray) -> float:
    """Return the largest difference of a stored field from a small one that is repeated."""
    store = FieldStore(url)
    region = store.region or Block((0, 0, 0), (store.grid,) * 3)
    worst = 0.0
    size = 128
    axes = [
        [
            (first, min(size, origin + length - first))
            for first in range(origin, origin + length, size)
        ]
        for origin, length in zip(region.origin, region.shape, strict=True)
    ]
    for (x, nx), (y, ny), (z, nz) in itertools.product(*axes):
        block = Block((x, y, z), (nx, ny, nz))
        found = store.read_block(name, block)
        worst = max(worst, float(np.abs(found - wrap_block(small, block)).max()))
    return worst
