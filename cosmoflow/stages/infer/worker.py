"""Workers of `infer`: read a block, predict it in tiles, derive fields, write shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.config.networks import InferConfig
from cosmoflow.engine import Pipeline
from cosmoflow.errors import ConfigError
from cosmoflow.model.caching import CachedFields
from cosmoflow.model.precision import autocast, best_device, prepare_device
from cosmoflow.model.sources import FieldSource, Flow, read_tensor, variable_of
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import (
    Block,
    Slices,
    grid_blocks,
    grow,
    intersect,
    overlap,
    place,
)
from cosmoflow.numerics.field_table import ERROR, SPREAD
from cosmoflow.numerics.moments import Moments
from cosmoflow.numerics.rounding import round_to
from cosmoflow.numerics.symmetry import spread_symmetries
from cosmoflow.stages.derive import derive_block
from cosmoflow.stages.infer.request import Work, is_velocity, wanted_block
from cosmoflow.stages.infer.tiles import (
    Layout,
    batches,
    blending_weights,
    cut_pieces,
    read_region,
)
from cosmoflow.stages.models import open_model
from cosmoflow.storage.fields import FieldStore, write_block
from cosmoflow.storage.flows import check_filter

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Member:
    """A model of an ensemble, and the global velocities that it reads.

    Parameters
    ----------
    model : VelocityModel
        The model, in evaluation mode, on the ensemble's device.
    flows : tuple of Flow
        Global velocities, in the order of the model's inputs.
    """

    model: VelocityModel
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Fields that models need to predict a block, in memory.

    Parameters
    ----------
    block : Block
        The cells to predict.
    region : Block
        The cells read, halo included.
    density : Tensor
        Density over its mean, shape ``(*region.shape)``.
    flows : dict of Flow to Tensor
        Global velocities, shapes ``(3, *region.shape)``, km/s.
    grid : int
        Cells per axis of the periodic box.
    """

    block: Block
    region: Block
    density: Tensor
    flows: dict[Flow, Tensor]
    grid: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """The target over a block.

    Parameters
    ----------
    mean : ndarray
        Mean over models and turned frames, shape ``(3, nx, ny, nz)``, float32, km/s.
    spread : ndarray or None
        Standard deviation of the predictions of models and turned frames, same shape.
    size : ndarray or None
        Size of the errors that the models expect, averaged over models and frames, same shape.
    """

    mean: Floats
    spread: Floats | None
    size: Floats | None = None


@dataclass(frozen=True)
class Ensemble:
    """One or more models whose predictions are averaged.

    Parameters
    ----------
    members : sequence of Member
        The models, all with the same target.
    layout : Layout
        Tiles, batches, overlap.
    config : InferConfig
        Precision, symmetries and spread.
    device : torch.device
        Device that holds the models.
    """

    members: Sequence[Member]
    layout: Layout
    config: InferConfig
    device: torch.device

    def read(self, source: FieldSource, block: Block) -> Inputs:
        """Read what all members need to predict a block."""
        geometries = [one.model.geometry for one in self.members]
        region = read_region(block, geometries, self.layout, source.grid)
        flows = {flow: variable_of(flow) for one in self.members for flow in one.flows}
        return Inputs(
            block,
            region,
            read_tensor(source, "density", region),
            {flow: read_tensor(source, name, region, lead) for flow, (name, lead) in flows.items()},
            source.grid,
        )

    @torch.inference_mode()
    def predict(self, inputs: Inputs) -> Prediction:
        """Predict a block.

        Where tiles overlap, their predictions and variances are averaged with the same weights.
        """
        spread = self.config.spread
        shape = (3, *inputs.block.shape)
        total = Moments(spread=spread)
        squares: Tensor | None = None
        sizes = Moments(spread=False)
        for member in self.members:
            mean = torch.zeros(shape)
            within = torch.zeros(shape) if spread else None
            size = torch.zeros(shape) if self.config.errors else None
            self._predict_member(member, inputs, mean, within, size)
            total.add(mean)
            if within is not None:
                squares = within if squares is None else squares.add_(within)
            if size is not None:
                sizes.add(size)
        expected = sizes.mean.numpy() if self.config.errors else None
        if squares is None:
            return Prediction(total.mean.numpy(), None, expected)
        frames = self.config.symmetries
        squares.add_(total.squares, alpha=frames)
        count = frames * len(self.members)
        return Prediction(total.mean.numpy(), squares.div_(count - 1).sqrt_().numpy(), expected)

    def _predict_member(
        self,
        member: Member,
        inputs: Inputs,
        mean: Tensor,
        squares: Tensor | None,
        size: Tensor | None,
    ) -> None:
        """Add one model's mean over turned frames, its squared deviations and errors to a block."""
        for piece in cut_pieces(inputs.block, member.model.geometry, self.layout, inputs.grid):
            # Tiles may extend past their piece; those cells belong to the next piece.
            cells = (..., *place(piece.block, inputs.block))
            weights = blending_weights(piece.tiles.shape[0], self.layout.overlap)
            for group in batches(piece.tiles, self.layout.batch):
                found, sizes = self._predict_tiles(member, inputs, group)
                _place_tiles(piece.block, group, found.mean, weights, mean[cells])
                if squares is not None:
                    _place_tiles(piece.block, group, found.squares, weights, squares[cells])
                if size is not None:
                    _place_tiles(piece.block, group, sizes.mean, weights, size[cells])

    def _predict_tiles(
        self, member: Member, inputs: Inputs, tiles: Sequence[Block]
    ) -> tuple[Moments, Moments]:
        """Return the moments over turned frames of one model's prediction of tiles, and errors."""
        parts = [place(grow(tile, member.model.geometry.halo), inputs.region) for tile in tiles]
        density = torch.stack([inputs.density[part] for part in parts])
        flows = _stack_flows(inputs, member.flows, parts, density)
        found, sizes = Moments(spread=self.config.spread), Moments(spread=False)
        with autocast(self.config.precision, self.device):
            for one in member.model.members(
                density.to(self.device),
                flows.to(self.device),
                spread_symmetries(self.config.symmetries),
                errors=self.config.errors,
            ):
                found.add(one.mean)
                if one.size is not None:
                    sizes.add(one.size)
        return found, sizes


def _stack_flows(
    inputs: Inputs, flows: tuple[Flow, ...], parts: Sequence[Slices], density: Tensor
) -> Tensor:
    """Return the global velocities of tiles, shape ``(tiles, flows, 3, nx, ny, nz)``."""
    if not flows:
        return density.new_empty((len(parts), 0, 3, *density.shape[1:]))
    return torch.stack(
        [torch.stack([inputs.flows[flow][(..., *part)] for flow in flows]) for part in parts]
    )


def _place_tiles(
    block: Block,
    tiles: Sequence[Block],
    values: Tensor,
    weights: Floats | None,
    out: Tensor,
) -> None:
    """Copy tiles into a block, or add them with weights."""
    for tile, cells in zip(tiles, values.cpu(), strict=True):
        inside, part = overlap(block, tile)
        if weights is None:
            out[(..., *inside)] = cells[(..., *part)]
        else:
            out[(..., *inside)] += cells[(..., *part)] * torch.from_numpy(weights[part])


@dataclass(frozen=True, slots=True)
class PredictedBlock:
    """A predicted block, as a box to derive fields from.

    Parameters
    ----------
    velocity : ndarray
        Predicted velocity, shape ``(3, *inputs.block.shape)``, km/s.
    inputs : Inputs
        Inputs of the prediction.
    cell_size : float
        Side of a cell, Mpc/h.
    """

    velocity: Floats
    inputs: Inputs
    cell_size: float

    def read_block(self, name: str, block: Block, *, lead: tuple[int, ...] = ()) -> Floats:
        """Return the velocity or the density over a block."""
        if name == "density":
            found: Floats = self.inputs.density.numpy()[place(block, self.inputs.region)]
            return found
        part: Floats = self.velocity[lead][(..., *place(block, self.inputs.block))]
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
    ensemble = make_ensemble(models, work)
    wiener = next((m.spec.filter for m in models if m.spec.filter is not None), None)
    blocks = grid_blocks(store.grid, work.layout.shard)
    source = CachedFields(store, store.chunk, work.layout.cache) if work.layout.cache else store

    def read(shards: tuple[int, ...]) -> tuple[tuple[int, ...], Inputs]:
        block = wanted_block([blocks[shard] for shard in shards], work.region, work.halo)
        try:
            return shards, ensemble.read(source, block)
        finally:
            # If another run replaces the velocity by that of another filter, raise that error, even
            # if reading failed.
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
    """Predict a block and derive the requested fields, rounded where requested.

    Parameters
    ----------
    ensemble : Ensemble
        The models.
    inputs : Inputs
        Inputs of the block, with one more cell on every side if derivatives are requested.
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
            remedy="set smaller ones, then run again with --resume",
        ) from error
    cells = (..., *place(block, inputs.block))
    fields = {work.target: found.mean[cells]}
    if found.spread is not None:
        fields[work.target + SPREAD] = found.spread[cells]
    if found.size is not None:
        fields[work.target + ERROR] = found.size[cells]
    if work.config.fields:
        source = PredictedBlock(found.mean, inputs, cell_size)
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
