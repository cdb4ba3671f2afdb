"""What a worker of `infer` does: read a block, predict it, derive from it, write its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cosmoflow.engine import Pipeline
from cosmoflow.errors import ConfigError
from cosmoflow.model.caching import CachedFields
from cosmoflow.model.precision import best_device, prepare_device
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks, intersect, place
from cosmoflow.numerics.rounding import round_to, rounding_step
from cosmoflow.stages.derive import derive_block, recipe_of
from cosmoflow.stages.infer.ensemble import Ensemble, Floats, Inputs, Member
from cosmoflow.stages.infer.request import Work, wanted_block
from cosmoflow.stages.models import open_model
from cosmoflow.storage.fields import RESTORED, FieldStore, write_block
from cosmoflow.storage.flows import check_filter
from cosmoflow.storage.variables import ROUNDED
from cosmoflow.units import FIELD_UNITS, VELOCITY


@dataclass(frozen=True, slots=True)
class PredictedBlock:
    """A predicted block as a box that fields are derived from, inside the block.

    Parameters
    ----------
    velocity : ndarray
        Shape ``(3, *inputs.block.shape)``, km/s.
    inputs : Inputs
        What it was predicted from.
    cell_size : float
        Mpc/h.
    """

    velocity: Floats
    inputs: Inputs
    cell_size: float

    def read_block(self, name: str, block: Block, *, lead: tuple[int, ...] = ()) -> Floats:
        """Return some cells of the velocity or the density."""
        if name == "density":
            found: Floats = self.inputs.density.numpy()[place(block, self.inputs.region)]
            return found
        part: Floats = self.velocity[lead][(..., *place(block, self.inputs.block))]
        return part


def make_predictor(
    fields: str, work: Work, out: str, digest: str
) -> Pipeline[tuple[int, ...], tuple[int, ...]]:
    """Load the models in a worker and return what predicts and writes the shards of a task.

    Parameters
    ----------
    fields, out : str
        URLs of the stores to read and to write.
    work : Work
        What is asked for.
    digest : str
        Of the run, whose output it must still be.
    """
    store = FieldStore(fields)
    models = [open_model(name, store) for name in work.models]
    ensemble = make_ensemble(models, work)
    wiener = next((m.spec.filter for m in models if m.spec.filter is not None), None)
    blocks = grid_blocks(store.grid, work.layout.shard)
    source = CachedFields(store, store.chunk, work.layout.cache) if work.layout.cache else store

    def read(shards: tuple[int, ...]) -> tuple[tuple[int, ...], Inputs]:
        block = wanted_block([blocks[shard] for shard in shards], work.region, work.halo)
        try:
            return shards, ensemble.read(source, block)
        finally:
            # Another run may have put another filter's velocity there, or be about to: that is what
            # to tell, whatever came of reading.
            if wiener is not None:
                check_filter(fields, wiener.digest, work.origin)

    def predict(
        task: tuple[tuple[int, ...], Inputs],
    ) -> tuple[tuple[int, ...], Mapping[str, Floats]]:
        shards, inputs = task
        block = wanted_block([blocks[shard] for shard in shards], work.region, 0)
        return shards, predict_fields(ensemble, inputs, block, work, store.cell_size)

    def write(task: tuple[tuple[int, ...], Mapping[str, Floats]]) -> tuple[int, ...]:
        shards, predicted = task
        whole = wanted_block([blocks[shard] for shard in shards], work.region, 0)
        for shard in shards:
            cut = _cut_shard(predicted, whole, blocks[shard])
            write_block(out, blocks[shard], shard, cut, digest=digest)
        return shards

    return Pipeline(read, predict, write)


def make_ensemble(models: Sequence[VelocityModel], work: Work) -> Ensemble:
    """Put models on this process's device, ready to predict."""
    device = best_device()
    prepare_device(device, same_shapes=False)
    members = []
    for model, flows in zip(models, work.flows, strict=True):
        model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        members.append(Member(model.to(device), flows))
    return Ensemble(members, work.layout, work.config, device)


def predict_fields(
    ensemble: Ensemble, inputs: Inputs, block: Block, work: Work, cell_size: float
) -> dict[str, Floats]:
    """Predict a block and derive from it what is asked for, rounded if that is asked for.

    Parameters
    ----------
    ensemble : Ensemble
        The models.
    inputs : Inputs
        Of the block, and of a cell more on every side where derivatives are wanted.
    block : Block
        The cells to return.
    work : Work
        What is asked for.
    cell_size : float
        Mpc/h.

    Returns
    -------
    dict of str to array
        Shapes ``(..., *block.shape)``, float32.

    Raises
    ------
    ConfigError
        The device has too little memory.
    """
    try:
        found = ensemble.predict(inputs)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the device has too little memory for a forward pass",
            where="infer.tile and infer.batch",
            value=f"tiles of {work.layout.tile} cells, {work.layout.batch} at once",
            remedy="ask for smaller ones, then run again with --resume",
        ) from error
    cells = (..., *place(block, inputs.block))
    fields = {work.target: found.mean[cells]}
    if found.std is not None:
        fields[f"{work.target}_std"] = found.std[cells]
    if work.config.fields:
        source = PredictedBlock(found.mean, inputs, cell_size)
        fields |= derive_block(source, block, work.config.fields, None, (0.0, 0.0, 0.0))
    if work.config.rounding is not None:
        for name in filter(is_velocity, fields):
            fields[name] = round_to(fields[name], work.config.rounding)
    return fields


def _cut_shard(fields: Mapping[str, Floats], whole: Block, shard: Block) -> dict[str, Floats]:
    """Return a shard's part of some fields; where they do not reach it is not a number."""
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


def is_velocity(name: str) -> bool:
    """Tell whether a variable is in km/s, so that it may be rounded."""
    return FIELD_UNITS[name][0] == VELOCITY


def describe_variables(work: Work) -> dict[str, dict[str, Any]]:
    """Return what the variables of an output say of themselves beside their units."""
    attributes: dict[str, dict[str, Any]] = {name: {} for name in (*work.variables, RESTORED)}
    for derived in work.config.fields:
        if recipe_of(derived).slopes:
            attributes[derived]["derivatives"] = "difference"
    if work.config.spread:
        count = len(work.models) * work.config.symmetries
        attributes[f"{work.target}_std"]["predictions"] = count
    if work.config.rounding is not None:
        for name in filter(is_velocity, attributes):
            attributes[name][ROUNDED] = rounding_step(work.config.rounding)
    return attributes
