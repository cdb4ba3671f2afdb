"""Ensembles of models that predict blocks of a box in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.config.networks import InferConfig
from cosmoflow.model.precision import autocast, best_device, prepare_device
from cosmoflow.model.sources import FieldSource, Flow, read_tensor, variable_of
from cosmoflow.model.traffic import Traffic, finish
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, Slices, grow, overlap, place
from cosmoflow.numerics.moments import Moments
from cosmoflow.numerics.symmetry import spread_symmetries
from cosmoflow.stages.infer.tiles import (
    Layout,
    batches,
    blending_weights,
    cut_pieces,
    read_region,
)

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
    """Fields that models need to predict a block.

    Parameters
    ----------
    block : Block
        The cells to predict.
    region : Block
        The cells read, halo included.
    stored : Tensor
        Density over its mean, shape ``(*region.shape)``, in main memory.
    density : Tensor
        The same on the device.
    flows : dict of Flow to Tensor
        Global velocities, shapes ``(3, *region.shape)``, km/s, on the device.
    grid : int
        Cells per axis of the periodic box.
    """

    block: Block
    region: Block
    stored: Tensor
    density: Tensor
    flows: dict[Flow, Tensor]
    grid: int


@dataclass(frozen=True, slots=True)
class Found:
    """The target over a block, on the device; see :class:`Prediction`."""

    mean: Tensor
    spread: Tensor | None
    size: Tensor | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The target over a block, in main memory.

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

    A block is moved to the device as a whole; its tiles are cut and put in place there.

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

    @classmethod
    def load(
        cls,
        models: Sequence[VelocityModel],
        flows: Sequence[tuple[Flow, ...]],
        layout: Layout,
        config: InferConfig,
    ) -> Ensemble:
        """Put models on this process's device, ready to predict."""
        device = best_device()
        prepare_device(device, same_shapes=False)
        members = []
        for model, own in zip(models, flows, strict=True):
            model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            members.append(Member(model.to(device), own))
        return cls(members, layout, config, device)

    @cached_property
    def _inward(self) -> Traffic:
        return Traffic(self.device)

    @cached_property
    def _outward(self) -> Traffic:
        return Traffic(self.device)

    def read(self, source: FieldSource, block: Block) -> Inputs:
        """Read what all members need to predict a block."""
        geometries = [one.model.geometry for one in self.members]
        region = read_region(block, geometries, self.layout, source.grid)
        stored = read_tensor(source, "density", region)
        flows = {}
        for flow in dict.fromkeys(flow for one in self.members for flow in one.flows):
            name, lead = variable_of(flow)
            flows[flow] = self._inward.bring(read_tensor(source, name, region, lead))
        density = self._inward.bring(stored)
        return Inputs(block, region, stored, density, flows, source.grid)

    def predict(self, inputs: Inputs) -> Prediction:
        """Predict a block."""
        return self.fetch(self.compute(inputs))

    def fetch(self, found: Found) -> Prediction:
        """Return a computed block in main memory."""

        def fetch(field: Tensor | None) -> Floats | None:
            return None if field is None else self._outward.fetch(field).numpy()

        mean = fetch(found.mean)
        assert mean is not None
        return Prediction(mean, fetch(found.spread), fetch(found.size))

    @torch.inference_mode()
    def compute(self, inputs: Inputs) -> Found:
        """Predict a block on the device.

        Where tiles overlap, their predictions and variances are averaged with the same weights.
        """
        spread, count = self.config.spread, len(self.members) * self.config.symmetries
        total, sizes = Moments(spread=spread), Moments(spread=False)
        squares: Tensor | None = None
        for member in self.members:
            mean = self._blank(inputs)
            within = self._blank(inputs) if spread else None
            size = self._blank(inputs) if self.config.errors else None
            self._predict_member(member, inputs, mean, within, size)
            total.add(mean)
            if within is not None:
                squares = within if squares is None else squares.add_(within)
            if size is not None:
                sizes.add(size)
        if squares is not None:
            squares.add_(total.squares, alpha=self.config.symmetries).div_(count - 1).sqrt_()
        found = Found(total.mean, squares, sizes.mean if self.config.errors else None)
        finish(self.device)
        return found

    def _blank(self, inputs: Inputs) -> Tensor:
        """Return a vector field over a block, to be filled by tiles or summed over them."""
        make = torch.zeros if self.layout.overlap else torch.empty
        return make((3, *inputs.block.shape), device=self.device)

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
            blend = blending_weights(piece.tiles.shape[0], self.layout.overlap)
            weights = None if blend is None else torch.from_numpy(blend).to(self.device)
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
        density = _join([inputs.density[part] for part in parts])
        flows = _join_flows(inputs, member.flows, parts, density)
        found, sizes = Moments(spread=self.config.spread), Moments(spread=False)
        with autocast(self.config.precision, self.device):
            for one in member.model.members(
                density,
                flows,
                spread_symmetries(self.config.symmetries),
                errors=self.config.errors,
            ):
                found.add(one.mean)
                if one.size is not None:
                    sizes.add(one.size)
        return found, sizes


def _join(fields: Sequence[Tensor]) -> Tensor:
    """Return fields along a new first dimension; a single one is not copied."""
    return fields[0].unsqueeze(0) if len(fields) == 1 else torch.stack(list(fields))


def _join_flows(
    inputs: Inputs, flows: tuple[Flow, ...], parts: Sequence[Slices], density: Tensor
) -> Tensor:
    """Return the global velocities of tiles, shape ``(tiles, flows, 3, nx, ny, nz)``."""
    if not flows:
        return density.new_empty((len(parts), 0, 3, *density.shape[1:]))
    return _join([_join([inputs.flows[flow][(..., *part)] for flow in flows]) for part in parts])


def _place_tiles(
    block: Block,
    tiles: Sequence[Block],
    values: Tensor,
    weights: Tensor | None,
    out: Tensor,
) -> None:
    """Copy tiles into a block, or add them with weights."""
    for tile, cells in zip(tiles, values, strict=True):
        inside, part = overlap(block, tile)
        if weights is None:
            out[(..., *inside)] = cells[(..., *part)]
        else:
            out[(..., *inside)] += cells[(..., *part)] * weights[part]
