"""Crops of boxes for training and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cosmoflow.errors import DataError
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.sources import FieldSource, Flow, read_inputs, read_tensor, variable_of
from cosmoflow.model.velocity import Normalisation, Target
from cosmoflow.numerics.blocks import Block, split_block
from cosmoflow.numerics.symmetry import CUBE_GROUP, Symmetry

_LEAST_VARIATION = 1e-6
"""A smaller standard deviation, in units of the fields, is rounding error."""


@dataclass(frozen=True, slots=True)
class TrainingBox:
    """A box to train on.

    Parameters
    ----------
    source : FieldSource
        Source of ``density``, the target and, for networks that use them, the global flows.
    flows : tuple of Flow
        Stored global velocities that are inputs of the network.
    region : Block
        Cells of the targets.
    periodic : bool
        Whether crops may wrap around along axes that the region covers completely; false for a
        box cut out of a larger one.
    frame : tuple of float
        Numbers of the box that a family of models needs, see
        :meth:`cosmoflow.model.family.Family.frame`; empty for a model of one condition.
    """

    source: FieldSource
    flows: tuple[Flow, ...]
    region: Block
    periodic: bool = True
    frame: tuple[float, ...] = ()

    @classmethod
    def slab(
        cls,
        source: FieldSource,
        flows: tuple[Flow, ...],
        first: int,
        cells: int,
        frame: tuple[float, ...] = (),
    ) -> TrainingBox:
        """Return a box whose training region is ``cells`` along x, starting at ``first``."""
        grid = source.grid
        return cls(source, flows, Block((first, 0, 0), (cells, grid, grid)), frame=frame)

    def place_crop(self, crop: int, rng: np.random.Generator) -> Block:
        """Return a random crop of ``crop`` cells per axis."""
        grid = self.source.grid

        def origins(cells: int) -> int:
            return grid if self.periodic and cells == grid else cells - crop + 1

        x, y, z = (
            first + int(rng.integers(0, origins(cells)))
            for first, cells in zip(self.region.origin, self.region.shape, strict=True)
        )
        return Block((x, y, z), (crop, crop, crop))


class Sample(NamedTuple):
    """Tensors of one crop: density and global flows with halo, target without, frame of the box."""

    density: Tensor
    flows: Tensor
    target: Tensor
    frame: Tensor

    def turn(self, symmetry: Symmetry) -> Sample:
        """Return the crop in a turned frame."""
        return Sample(
            symmetry.apply(self.density, vector=False),
            symmetry.apply(self.flows, vector=True),
            symmetry.apply(self.target, vector=True),
            self.frame,
        )


def read_sample(box: TrainingBox, target: str, block: Block, halo: int) -> Sample:
    """Read one crop."""
    density, flows = read_inputs(box.source, box.flows, block, halo)
    frame = density.new_tensor(box.frame)
    return Sample(density, flows, read_tensor(box.source, target, block), frame)


def stack(samples: Sequence[Sample]) -> Sample:
    """Stack samples into a batch."""
    return Sample(*map(torch.stack, zip(*samples, strict=True)))


def choose_box(boxes: Sequence[TrainingBox], rng: np.random.Generator) -> TrainingBox:
    """Return a random box, with probability proportional to its training cells.

    Boxes of a family of models are equally probable: otherwise the conditions with the smallest
    cells would rule the training.
    """
    weights = np.array([1 if box.frame else math.prod(box.region.shape) for box in boxes], float)
    return boxes[int(rng.choice(len(boxes), p=weights / weights.sum()))]


def draw_batch(
    boxes: Sequence[TrainingBox],
    target: str,
    geometry: Geometry,
    *,
    crop: int,
    crops: Sequence[int],
    augment: bool,
    key: tuple[int, int],
) -> Sample:
    """Draw crops of a random batch.

    Parameters
    ----------
    boxes : sequence of TrainingBox
        Boxes, drawn as :func:`choose_box` does.
    target : str
        Variable to predict.
    geometry : Geometry
        Geometry of the network.
    crop : int
        Output cells per axis of a crop.
    crops : sequence of int
        Numbers of the crops within the batch, which the workers share.
    augment : bool
        Transform every crop by a random one of the 48 symmetries of the cube.
    key : (int, int)
        Seed and step. A crop depends only on them and on its number, so a resumed run draws the
        same crops as an uninterrupted one.
    """
    samples = []
    for number in crops:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, number))))
        box = choose_box(boxes, rng)
        sample = read_sample(box, target, box.place_crop(crop, rng), geometry.halo)
        symmetry = CUBE_GROUP[int(rng.integers(0, len(CUBE_GROUP)))]
        samples.append(sample.turn(symmetry) if augment else sample)
    return stack(samples)


def slab_cells(grid: int, fraction: float, geometry: Geometry) -> int:
    """Return the cells along x of a single box that make a share of it for validation."""
    unit = geometry.fixed_output or geometry.stride
    return math.ceil(fraction * grid / unit) * unit


def split_lone_box(grid: int, fraction: float, crop: int, geometry: Geometry) -> int:
    """Return the number of cells along x of a single box to keep for validation.

    Raises
    ------
    DataError
        The box is too small for a crop and a validation slab.
    """
    slab = slab_cells(grid, fraction, geometry)
    if grid - slab < crop:
        raise DataError(
            "the box is too small to train and validate on",
            where="train.crop",
            value=f"{crop} cells of {grid}, {slab} of them kept for validation",
            limit=grid - slab,
            remedy="a larger box, or more boxes"
            if geometry.fixed_output
            else "a smaller train.crop, or more boxes",
        )
    return slab


def validation_blocks(
    grid: int, first: int, cells: int, crop: int, geometry: Geometry, limit: int
) -> list[Block]:
    """Return at most ``limit`` blocks spread evenly over cells ``first`` to ``first + cells``."""
    side = geometry.fixed_output or min(crop, cells)
    region = Block((first, 0, 0), (cells, grid, grid))
    blocks = [
        Block(block.origin, (side, crop, crop))
        for block in split_block(region, max(side, crop))
        # A remainder would reach past the end of the region, into the training cells.
        if block.shape[0] >= side and min(block.shape[1:]) == crop
    ]
    stride = max(1, len(blocks) // limit)
    return blocks[::stride][:limit]


def measure_normalisation(
    boxes: Sequence[TrainingBox], target: Target, offset: float
) -> Normalisation:
    """Measure the constants of a model over its training slabs, plane by plane, in float64."""
    sums = np.zeros(5)
    for box in boxes:
        grid = box.source.grid
        step = max(1, 2**22 // grid**2)
        first, end = box.region.origin[0], box.region.origin[0] + box.region.shape[0]
        for x in range(first, end, step):
            block = Block((x, 0, 0), (min(step, end - x), grid, grid))
            rho = box.source.read_block("density", block)
            log_density = np.log(rho + np.float32(offset), dtype=np.float64)
            residual = box.source.read_block(target, block)
            flow = residual
            if box.flows:
                name, lead = variable_of(box.flows[0])
                flow = box.source.read_block(name, block, lead=lead)
                residual = residual - (flow if target == "velocity" else flow * rho)
            sums += (
                rho.size,
                log_density.sum(),
                (log_density**2).sum(),
                np.square(flow, dtype=np.float64).sum(),
                np.square(residual, dtype=np.float64).sum(),
            )
    count, total, squares, flows, residuals = sums
    mean = total / count
    constants = Normalisation(
        density_mean=float(mean),
        density_std=math.sqrt(max(squares / count - mean**2, 0.0)),
        velocity_scale=math.sqrt(flows / (3 * count)),
        target_scale=math.sqrt(residuals / (3 * count)),
    )
    scales = (constants.density_std, constants.velocity_scale, constants.target_scale)
    if min(scales) < _LEAST_VARIATION:
        raise DataError(
            "the training fields do not vary",
            value=constants,
            remedy="check that they were painted from an evolved snapshot",
        )
    return constants
