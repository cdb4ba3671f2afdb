"""Workers of `infer`: read a block, predict it in tiles, derive fields, write shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cosmoflow.engine import Pipeline
from cosmoflow.errors import ConfigError
from cosmoflow.model.caching import CachedFields
from cosmoflow.model.sources import FieldSource
from cosmoflow.numerics.blocks import Block, grid_blocks, intersect, place
from cosmoflow.numerics.field_table import ERROR, SPREAD
from cosmoflow.numerics.rounding import round_to
from cosmoflow.stages.infer.ensemble import Ensemble, Floats, Found, Inputs
from cosmoflow.stages.infer.layout import shards_at_once
from cosmoflow.stages.infer.request import Work, is_velocity, wanted_block
from cosmoflow.stages.models import open_model
from cosmoflow.storage.field_writing import write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import check_filter
from cosmoflow.storage.places import local_path
from cosmoflow.storage.together import AT_ONCE, together


@dataclass(frozen=True, slots=True)
class PredictedBlock:
    """A predicted block, as a box to derive fields from.

    Parameters
    ----------
    velocity : ndarray
        Predicted velocity, shape ``(3, *block.shape)``, km/s.
    block : Block
        The predicted cells.
    density : ndarray
        Density over its mean, shape ``(*region.shape)``.
    region : Block
        Cells of the density.
    cell_size : float
        Side of a cell, Mpc/h.
    """

    velocity: Floats
    block: Block
    density: Floats
    region: Block
    cell_size: float

    def read_block(self, name: str, block: Block, *, lead: tuple[int, ...] = ()) -> Floats:
        """Return the velocity or the density over a block."""
        if name == "density":
            return self.density[place(block, self.region)]
        part: Floats = self.velocity[lead][(..., *place(block, self.block))]
        return part


def make_predictor(
    fields: str, work: Work, out: str, digest: str
) -> Pipeline[tuple[int, ...], tuple[int, ...]]:
    """Load the models in a worker and return a pipeline that predicts and writes shards.

    Parameters
    ----------
    fields, out : str
        URLs of the stores to read and to write.
    work : Work
        The request.
    digest : str
        Digest of the run that must still own the output.
    """
    store = FieldStore(fields)
    particles = work.config.particles_per_cell
    models = [open_model(name, store, particles_per_cell=particles) for name in work.models]
    ensemble = Ensemble.load(models, work.flows, work.layout, work.config)
    blocks = grid_blocks(store.grid, work.layout.shard)
    source: FieldSource = store
    if work.layout.cache:
        at_once = AT_ONCE if local_path(fields) is None else 1
        source = CachedFields(store, work.layout.piece, work.layout.cache, at_once=at_once)

    def read(shards: tuple[int, ...]) -> tuple[tuple[int, ...], Inputs]:
        block = wanted_block([blocks[shard] for shard in shards], work.region, work.halo)
        try:
            return shards, ensemble.read(source, block)
        finally:
            # If another run replaces the velocity by that of another filter, raise that error, even
            # if reading failed.
            if work.filter is not None:
                check_filter(fields, work.filter, work.origin)

    def predict(task: tuple[tuple[int, ...], Inputs]) -> tuple[tuple[int, ...], Computed]:
        shards, inputs = task
        return shards, compute(ensemble, inputs, work)

    def write(task: tuple[tuple[int, ...], Computed]) -> tuple[int, ...]:
        shards, computed = task
        whole = wanted_block([blocks[shard] for shard in shards], work.region, 0)
        predicted = finish_fields(ensemble, computed, whole, work, store.cell_size)
        del computed, task

        def write_shard(shard: int) -> None:
            cut = _cut_shard(predicted, whole, blocks[shard])
            write_block(out, blocks[shard], shard, cut, digest=digest)

        together(out, write_shard, shards, most=shards_at_once(work))
        return shards

    return Pipeline(read, predict, write)


@dataclass(frozen=True, slots=True)
class Computed:
    """A block that the models have computed.

    Parameters
    ----------
    found : Found
        The target, on the device.
    block, region : Block
        Cells of the target, and of the density.
    density : Tensor or None
        Density in main memory, if fields are derived from the prediction.
    """

    found: Found
    block: Block
    region: Block
    density: Tensor | None


def compute(ensemble: Ensemble, inputs: Inputs, work: Work) -> Computed:
    """Predict a block on the device.

    Raises
    ------
    ConfigError
        The device has too little memory.
    """
    try:
        found = ensemble.compute(inputs)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the device has too little memory for a forward pass",
            where="infer.tile and infer.batch",
            value=f"tiles of {work.layout.tile} cells, {work.layout.batch} at once",
            remedy="set smaller ones, then run again with --resume",
        ) from error
    density = inputs.stored if work.config.fields else None
    return Computed(found, inputs.block, inputs.region, density)


def finish_fields(
    ensemble: Ensemble, computed: Computed, block: Block, work: Work, cell_size: float
) -> dict[str, Floats]:
    """Derive the requested fields from a computed block, and round them where requested.

    Parameters
    ----------
    ensemble : Ensemble
        The models.
    computed : Computed
        The block, with one more cell on every side if derivatives are requested.
    block : Block
        Cells to return.
    work : Work
        The request.
    cell_size : float
        Side of a cell, Mpc/h.

    Returns
    -------
    dict of str to array
        Fields, shapes ``(..., *block.shape)``, float32.
    """
    found = ensemble.fetch(computed.found)
    cells = (..., *place(block, computed.block))
    fields = {work.target: found.mean[cells]}
    if found.spread is not None:
        fields[work.target + SPREAD] = found.spread[cells]
    if found.size is not None:
        fields[work.target + ERROR] = found.size[cells]
    if computed.density is not None:
        # Imported here: the stage that derives fields loads numba.
        from cosmoflow.stages.derive import derive_block

        source = PredictedBlock(
            found.mean, computed.block, computed.density.numpy(), computed.region, cell_size
        )
        fields |= derive_block(
            source, block, work.config.fields, None, (0.0, 0.0, 0.0), work.particles_per_cell
        )
    if work.config.rounding is not None:
        for name in filter(is_velocity, fields):
            fields[name] = round_to(fields[name], work.config.rounding)
    return fields


def _cut_shard(fields: Mapping[str, Floats], whole: Block, shard: Block) -> dict[str, Floats]:
    """Return the part of fields in a shard, NaN where they do not cover it."""
    inside = intersect(whole, shard)
    assert inside is not None
    cut = {name: values[(..., *place(inside, whole))] for name, values in fields.items()}
    if inside == shard:
        return cut
    padded = {}
    for name, values in cut.items():
        padded[name] = np.full((*values.shape[:-3], *shard.shape), np.nan, np.float32)
        padded[name][(..., *place(inside, shard))] = values
    return padded
