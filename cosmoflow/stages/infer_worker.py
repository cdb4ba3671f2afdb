"""What a worker of `infer` does: read a block, predict it, derive from it, write its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cosmoflow.engine import Pipeline
from cosmoflow.model.precision import best_device
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.rounding import round_to
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.stages.derived import derive_block
from cosmoflow.stages.infer_work import Work, wanted_block
from cosmoflow.stages.models import open_model
from cosmoflow.stages.prediction import Ensemble, Floats, Inputs, Member
from cosmoflow.stages.tiling import intersect, place
from cosmoflow.storage.fields import FieldStore, write_block
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


def make_predictor(fields: str, work: Work, out: str) -> Pipeline[tuple[int, ...], tuple[int, ...]]:
    """Load the models in a worker and return what predicts and writes the shards of a task."""
    device = best_device()
    store = FieldStore(fields)
    members = []
    for name, flows in zip(work.models, work.flows, strict=True):
        model = open_model(name, store).to(device)
        model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        members.append(Member(model, flows))
    ensemble = Ensemble(members, work.layout, work.config, device)
    blocks = grid_blocks(store.grid, work.layout.shard)

    def read(shards: tuple[int, ...]) -> tuple[tuple[int, ...], Inputs]:
        block = wanted_block([blocks[shard] for shard in shards], work.region, work.halo)
        return shards, ensemble.read(store, block)

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
            write_block(out, blocks[shard], shard, _cut_shard(predicted, whole, blocks[shard]))
        return shards

    return Pipeline(read, predict, write)


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
    """
    found = ensemble.predict(inputs)
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
