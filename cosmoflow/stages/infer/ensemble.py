"""Models run over blocks of a periodic box, tile by tile, in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.config.settings import InferConfig
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.precision import autocast
from cosmoflow.model.sources import FieldSource, Flow, read_tensor, variable_of
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import (
    Block,
    Slices,
    bounding_block,
    grid_blocks,
    grow,
    overlap,
    place,
)
from cosmoflow.numerics.moments import Moments
from cosmoflow.numerics.symmetry import spread_symmetries
from cosmoflow.stages.infer.tiles import Layout, batches, blending_weights, cut_pieces

Floats = NDArray[np.float32]

_BLOCK_CELLS = 128
"""Per axis of what is predicted at once of a box in memory."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model of an ensemble, and the global velocities that it takes of the box.

    Parameters
    ----------
    model : VelocityModel
        In evaluation mode, on the ensemble's device.
    flows : tuple of Flow
        Which, in the order of its inputs.
    """

    model: VelocityModel
    flows: tuple[Flow, ...]

    @property
    def geometry(self) -> Geometry:
        """How output cells lie in input cells."""
        return self.model.geometry


@dataclass(frozen=True, slots=True)
class Inputs:
    """What some models need to predict a block, read.

    Parameters
    ----------
    block : Block
        The cells to predict.
    region : Block
        The cells that were read, halo included.
    density : Tensor
        Shape ``(*region.shape)``, over its mean.
    flows : dict of Flow to Tensor
        Shapes ``(3, *region.shape)``, km/s.
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
        Shape ``(3, nx, ny, nz)``, float32, km/s: the mean over models and turned frames.
    std : ndarray or None
        Standard deviation of the predictions that the mean is of, of the same shape.
    """

    mean: Floats
    std: Floats | None


class Ensemble:
    """Models whose predictions are averaged; mostly there is one.

    Parameters
    ----------
    members : sequence of Member
        With one target.
    layout : Layout
        Tiles, batches, overlap.
    config : InferConfig
        Precision, symmetries and spread.
    device : torch.device
        Where the models are.
    """

    def __init__(
        self,
        members: Sequence[Member],
        layout: Layout,
        config: InferConfig,
        device: torch.device,
    ) -> None:
        self.members = tuple(members)
        self._layout = layout
        self._config = config
        self._device = device
        self._symmetries = spread_symmetries(config.symmetries)

    def read(self, source: FieldSource, block: Block) -> Inputs:
        """Read what all members need to predict a block."""
        needed = [
            grow(piece.tiles.bounds, one.geometry.halo)
            for one in self.members
            for piece in cut_pieces(block, one.geometry, self._layout, source.grid)
        ]
        # Neighbouring tiles share most of their halos, so what all of them need is read once.
        region = bounding_block(needed)
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
        spread = self._config.spread
        shape = (3, *inputs.block.shape)
        total = Moments(spread=spread)
        squares: Tensor | None = None
        for member in self.members:
            mean = torch.zeros(shape)
            within = torch.zeros(shape) if spread else None
            self._predict_member(member, inputs, mean, within)
            total.add(mean)
            if within is not None:
                squares = within if squares is None else squares.add_(within)
        if squares is None:
            return Prediction(total.mean.numpy(), None)
        frames = len(self._symmetries)
        squares.add_(total.squares, alpha=frames)
        count = frames * len(self.members)
        return Prediction(total.mean.numpy(), squares.div_(count - 1).sqrt_().numpy())

    def _predict_member(
        self, member: Member, inputs: Inputs, mean: Tensor, squares: Tensor | None
    ) -> None:
        """Add one model's mean over turned frames, and its squared deviations, to the block's."""
        geometry = member.geometry
        for piece in cut_pieces(inputs.block, geometry, self._layout, inputs.grid):
            # The tiles of a piece may reach into the next one, whose cells are not theirs.
            cells = (..., *place(piece.block, inputs.block))
            weights = blending_weights(piece.tiles.shape[0], self._layout.overlap)
            for group in batches(piece.tiles, self._layout.batch):
                found = self._predict_tiles(member, inputs, group, spread=squares is not None)
                _place_tiles(piece.block, group, found.mean, weights, mean[cells])
                if squares is not None:
                    _place_tiles(piece.block, group, found.squares, weights, squares[cells])

    def _predict_tiles(
        self, member: Member, inputs: Inputs, tiles: Sequence[Block], *, spread: bool
    ) -> Moments:
        """Return the moments, over turned frames, of one model's prediction of some tiles."""
        parts = [place(grow(tile, member.geometry.halo), inputs.region) for tile in tiles]
        density = torch.stack([inputs.density[part] for part in parts])
        flows = _stack_flows(inputs, member.flows, parts, density)
        found = Moments(spread=spread)
        with autocast(self._config.precision, self._device):
            for values in member.model.members(
                density.to(self._device), flows.to(self._device), self._symmetries
            ):
                found.add(values)
        return found


def _stack_flows(
    inputs: Inputs, flows: tuple[Flow, ...], parts: Sequence[Slices], density: Tensor
) -> Tensor:
    """Return the global velocities of some tiles, shape ``(tiles, flows, 3, nx, ny, nz)``."""
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
    """Put tiles into the block that they cover, or add them with their weights."""
    for tile, cells in zip(tiles, values.cpu(), strict=True):
        inside, part = overlap(block, tile)
        if weights is None:
            out[(..., *inside)] = cells[(..., *part)]
        else:
            out[(..., *inside)] += cells[(..., *part)] * torch.from_numpy(weights[part])


def predict_box(
    members: Sequence[Member],
    source: FieldSource,
    config: InferConfig,
    device: torch.device,
) -> Prediction:
    """Predict a whole periodic box in memory.

    Parameters
    ----------
    members, config, device
        See :class:`Ensemble`.
    source : FieldSource
        The box.

    Returns
    -------
    Prediction
        Of the box, shapes ``(3, n, n, n)``.
    """
    grid = source.grid
    block = min(_BLOCK_CELLS, grid)
    stride = math.lcm(*(member.geometry.stride for member in members))
    tile, batch = config.tile or -(-block // stride) * stride, config.batch or 1
    layout = Layout(block, (block, block, block), tile, batch, config.overlap)
    ensemble = Ensemble(members, layout, config, device)
    mean = np.empty((3, grid, grid, grid), np.float32)
    std = np.empty_like(mean) if config.spread else None
    for one in grid_blocks(grid, block):
        x, y, z = place(one, Block((0, 0, 0), (grid, grid, grid)))
        found = ensemble.predict(ensemble.read(source, one))
        mean[:, x, y, z] = found.mean
        if std is not None and found.std is not None:
            std[:, x, y, z] = found.std
    return Prediction(mean, std)
