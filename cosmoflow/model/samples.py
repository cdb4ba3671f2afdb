"""Crops of boxes to train and validate on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.errors import DataError
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.velocity import Normalisation, Target
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.symmetry import CUBE_GROUP, Symmetry
from cosmoflow.numerics.tiles import grow, read_periodic, split_block

_LEAST_VARIATION = 1e-6
"""Below this, in units of the fields, a standard deviation is rounding."""


class FieldSource(Protocol):
    """A periodic box to read blocks of; a fields store is one."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    def read_block(
        self, name: str, block: Block, *, lead: tuple[int, ...] = ()
    ) -> NDArray[np.float32]:
        """Return a periodic block of a variable."""


class MemoryFields:
    """A box whose fields are in memory.

    Parameters
    ----------
    fields : dict of str to array
        Shapes ``(..., n, n, n)``, float32.
    """

    def __init__(self, fields: dict[str, NDArray[np.float32]]) -> None:
        self._fields = fields

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return int(next(iter(self._fields.values())).shape[-1])

    def read_block(
        self, name: str, block: Block, *, lead: tuple[int, ...] = ()
    ) -> NDArray[np.float32]:
        """Return a periodic block of a variable."""
        field = self._fields[name][lead]
        return read_periodic(lambda part: field[(..., *part)], field.shape[:-3], block, self.grid)


@dataclass(frozen=True, slots=True)
class TrainingBox:
    """A box to learn from.

    Parameters
    ----------
    source : FieldSource
        Holds ``density``, the target and, for networks that want it, ``linear_velocity``.
    scales : tuple of int
        Which of the stored linear velocities are the network's inputs.
    first, cells : int
        The targets' cells along x: a lone box keeps the others for validation.
    """

    source: FieldSource
    scales: tuple[int, ...]
    first: int
    cells: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Tensors of one crop: density and linear velocity with halo, target without."""

    density: Tensor
    linear: Tensor
    target: Tensor

    def turn(self, symmetry: Symmetry) -> Sample:
        """Return the crop seen in a turned frame."""
        return Sample(
            symmetry.apply(self.density, vector=False),
            symmetry.apply(self.linear, vector=True),
            symmetry.apply(self.target, vector=True),
        )


def read_inputs(
    source: FieldSource, scales: Sequence[int], block: Block, halo: int
) -> tuple[Tensor, Tensor]:
    """Read what a network needs to predict a block.

    Returns
    -------
    density : Tensor
        Shape ``(nx + 2 halo, ...)``.
    linear : Tensor
        Shape ``(scales, 3, nx + 2 halo, ...)``, km/s.
    """
    haloed = grow(block, halo)
    density = torch.from_numpy(source.read_block("density", haloed))
    flows = [
        torch.from_numpy(source.read_block("linear_velocity", haloed, lead=(scale,)))
        for scale in scales
    ]
    linear = torch.stack(flows) if flows else density.new_empty((0, 3, *haloed.shape))
    return density, linear


def read_sample(box: TrainingBox, target: str, block: Block, halo: int) -> Sample:
    """Read one crop."""
    density, linear = read_inputs(box.source, box.scales, block, halo)
    return Sample(density, linear, torch.from_numpy(box.source.read_block(target, block)))


def stack(samples: Sequence[Sample]) -> Sample:
    """Make a batch."""
    return Sample(
        torch.stack([sample.density for sample in samples]),
        torch.stack([sample.linear for sample in samples]),
        torch.stack([sample.target for sample in samples]),
    )


def draw_batch(
    boxes: Sequence[TrainingBox],
    target: str,
    geometry: Geometry,
    *,
    crop: int,
    batch: int,
    augment: bool,
    key: tuple[int, int, int],
) -> Sample:
    """Draw a random batch.

    Parameters
    ----------
    boxes : sequence of TrainingBox
        Drawn from in proportion to their cells.
    target : str
        Variable to predict.
    geometry : Geometry
        Of the network.
    crop, batch : int
        Output cells per axis of a crop, and crops.
    augment : bool
        Turn every crop by one of the 48 symmetries of the cube.
    key : (int, int, int)
        Seed, step and rank: they alone decide the batch, so a resumed run draws what the
        uninterrupted one would have drawn.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    weights = np.array([box.cells * box.source.grid**2 for box in boxes], float)
    samples = []
    for _ in range(batch):
        box = boxes[int(rng.choice(len(boxes), p=weights / weights.sum()))]
        grid = box.source.grid
        # Crops of a whole box may wrap around its border; those of a part must stay inside it.
        origins = grid if box.cells == grid else box.cells - crop + 1
        x = box.first + int(rng.integers(0, origins))
        y, z = (int(v) for v in rng.integers(0, grid, 2))
        sample = read_sample(box, target, Block((x, y, z), (crop, crop, crop)), geometry.halo)
        symmetry = CUBE_GROUP[int(rng.integers(0, len(CUBE_GROUP)))]
        samples.append(sample.turn(symmetry) if augment else sample)
    return stack(samples)


def split_lone_box(grid: int, fraction: float, crop: int, geometry: Geometry) -> int:
    """Return how many cells along x of a lone box to keep for validation.

    Raises
    ------
    DataError
        The box is too small for a crop beside a validation slab.
    """
    unit = geometry.fixed_output or geometry.stride
    slab = math.ceil(fraction * grid / unit) * unit
    if grid - slab < crop:
        raise DataError(
            "the box is too small to train and validate on",
            where="train.crop",
            value=f"{crop} cells of {grid}, {slab} of them kept for validation",
            limit=grid - slab,
            remedy="a smaller train.crop, or more boxes",
        )
    return slab


def validation_blocks(
    grid: int, first: int, cells: int, crop: int, geometry: Geometry, limit: int
) -> list[Block]:
    """Return at most ``limit`` blocks, evenly spread over cells ``first`` to ``first + cells``."""
    side = geometry.fixed_output or min(crop, cells)
    region = Block((first, 0, 0), (cells, grid, grid))
    blocks = [
        Block(block.origin, (side, crop, crop))
        for block in split_block(region, max(side, crop))
        # A remainder of the region would reach past its end, into what is learned from.
        if block.shape[0] >= side and min(block.shape[1:]) == crop
    ]
    stride = max(1, len(blocks) // limit)
    return blocks[::stride][:limit]


def measure_normalisation(
    boxes: Sequence[TrainingBox], target: Target, offset: float
) -> Normalisation:
    """Measure the constants of a model over its training boxes, slab by slab, in float64."""
    sums = np.zeros(5)
    for box in boxes:
        grid = box.source.grid
        step = max(1, 2**22 // grid**2)
        for x in range(box.first, box.first + box.cells, step):
            block = Block((x, 0, 0), (min(step, box.first + box.cells - x), grid, grid))
            rho = box.source.read_block("density", block)
            log_density = np.log(rho + np.float32(offset), dtype=np.float64)
            residual = box.source.read_block(target, block)
            flow = residual
            if box.scales:
                flow = box.source.read_block("linear_velocity", block, lead=(box.scales[0],))
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
            "the training fields do not vary", value=constants,
            remedy="check that they were painted from an evolved snapshot",
        )  # fmt: skip
    return constants
