"""The pass over all cells: sums over a block, and results from the sums of a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.numerics.calibration import CalibrationSum, sum_calibration
from cosmoflow.numerics.comparison.coarse import CoarseSum, Runs, first_cells
from cosmoflow.numerics.comparison.readers import (
    TRUTH,
    Array,
    FieldReader,
    Json,
    Readers,
    read_tensor,
)
from cosmoflow.numerics.distributions import DistributionSum, sum_distributions
from cosmoflow.numerics.particle_bins import ParticleBinSum, sum_by_particles
from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.residuals import ResidualSum, sum_residual
from cosmoflow.numerics.threads import map_ahead

Floats = NDArray[np.float64]

COARSE_CELL: Final = 8.0
"""Approximate side of a coarse cell, Mpc/h, unless :data:`COARSE_CELLS` limits their number."""
COARSE_CELLS: Final = 128
"""Maximum coarse cells per axis."""
_INFALL_SCALE: Final = 8.0
"""Radius of the Gaussian that smooths the infall before its maximum is taken, Mpc/h."""
_WORST: Final = 5

SHARED: Final = ("infall", "infall_x", "infall_y", "infall_z", "mass", "truth2")
"""Quantities summed over coarse cells in addition to the squared residual of every method: the
squared divergence of the truth, unweighted and weighted with the cell's index along each axis, the
density, and the squared true velocity."""

# Cells per piece of work: limits the temporaries of a thread to some 15 MB.
_SLAB_CELLS: Final = 1 << 18


Summable = TypeVar("Summable", ParticleBinSum, CalibrationSum)
Pair = tuple[int, int]
"""Cells and coarse cells per axis of the box."""
Slab = tuple[Block, Tensor, Tensor, Tensor, Tensor | None]
"""Cells, with their density, truth and prediction including a halo of one cell, and the expected
errors of the prediction without it."""


@dataclass(frozen=True, eq=False)
class SlabSum:
    """Sums over a slab, for the truth or a method.

    Attributes
    ----------
    counts : DistributionSum
        Counts of the cells.
    coarse : CoarseSum
        :data:`SHARED` of the truth; the squared residual of a method.
    residual : ResidualSum, optional
        Residual sums of a method.
    particles : ParticleBinSum, optional
        Sums by the number of particles of a method, if that number is known.
    calibration : CalibrationSum, optional
        Sums over the expected errors of a method, if it has any.
    """

    counts: DistributionSum
    coarse: CoarseSum
    residual: ResidualSum | None = None
    particles: ParticleBinSum | None = None
    calibration: CalibrationSum | None = None


@dataclass(frozen=True, eq=False)
class BlockSum:
    """Sums over cells, by method.

    Attributes
    ----------
    residual : dict of ResidualSum
        Residual sums of every method.
    distributions : dict of DistributionSum
        Counts of the truth and of every method.
    particles : dict of ParticleBinSum
        Sums of every method by the number of particles in the cell; empty if it is not known.
    calibration : dict of CalibrationSum
        Sums of the methods that have expected errors.
    coarse : CoarseSum
        Sums of :data:`SHARED`, then the squared residuals of the methods in their order.
    """

    residual: dict[str, ResidualSum]
    distributions: dict[str, DistributionSum]
    particles: dict[str, ParticleBinSum]
    calibration: dict[str, CalibrationSum]
    coarse: CoarseSum

    @classmethod
    def zero(cls, names: Sequence[str], bins: int) -> Self:
        """Return the sums over no cells of a box with ``bins`` coarse cells per axis.

        Parameters
        ----------
        names : sequence of str
            Name of the truth, then names of the methods.
        """
        return cls(
            {name: ResidualSum.zero() for name in names[1:]},
            {name: DistributionSum.zero() for name in names},
            {},
            {},
            CoarseSum.zero(len(SHARED) + len(names) - 1, bins),
        )

    def count(self, other: BlockSum) -> BlockSum:
        """Add the exact sums of a block in place; return its other sums, which take less memory.

        Exact sums add up in any order. The other sums must be added in the order of the blocks, for
        the same digits.
        """
        for name, one in other.distributions.items():
            self.distributions[name] += one
        for name, bins in other.particles.items():
            _put(self.particles, name, bins)
        for name, found in other.calibration.items():
            _put(self.calibration, name, found)
        return replace(other, distributions={}, particles={}, calibration={})

    def add_slab(self, name: str, slab: SlabSum, row: int) -> None:
        """Add the sums of a slab for the truth or a method in place, from a row of coarse sums."""
        self.distributions[name] += slab.counts
        self.coarse.add(slab.coarse, row)
        if slab.residual is not None:
            self.residual[name] += slab.residual
        if slab.particles is not None:
            _put(self.particles, name, slab.particles)
        if slab.calibration is not None:
            _put(self.calibration, name, slab.calibration)

    def add(self, other: BlockSum) -> None:
        """Add the sums of a block inside this sum's coarse cells, in place."""
        rest = self.count(other)
        for name, one in rest.residual.items():
            self.residual[name] += one
        self.coarse.add(rest.coarse)


def _put(sums: dict[str, Summable], name: str, one: Summable) -> None:
    """Add a sum to that of the same name, if there is one."""
    sums[name] = sums[name] + one if name in sums else one


def coarse_cells(grid: int, box_size: float) -> int:
    """Return the number of coarse cells per axis of a box."""
    return max(1, min(COARSE_CELLS, grid, round(box_size / COARSE_CELL)))


def sum_block(
    readers: Readers,
    block: Block,
    rate: float,
    also: Callable[[Tensor, Tensor], None] | None = None,
) -> BlockSum:
    """Sum over the cells of a block.

    Parameters
    ----------
    readers : mapping of str to FieldReader
        Reader of the truth, then readers of the methods.
    block : Block
        Cells to sum over, inside the grid.
    rate : float
        ``f a H``, km/s per Mpc/h.
    also : callable, optional
        Takes the density and each velocity, with a halo of one cell around the block.

    Raises
    ------
    DataError
        A field is damaged or contains values that are not finite.
    """
    truth, names = readers[TRUTH], tuple(readers)
    haloed, cell = grow(block, 1), truth.box_size / truth.grid
    cut = (truth.grid, coarse_cells(truth.grid, truth.box_size))
    runs = Runs(*cut, block.origin, block.shape)
    coarse = CoarseSum(runs.origin, np.zeros((len(SHARED) + len(names) - 1, *runs.shape)))
    rho, v = read_tensor(truth, "density", haloed), read_tensor(truth, "velocity", haloed)
    total = replace(BlockSum.zero(names, 1), coarse=coarse)
    for number, (name, reader) in enumerate(readers.items()):
        is_truth = name == TRUTH
        w = v if is_truth else read_tensor(reader, "velocity", haloed)
        std = None if reader.intervals is None else read_tensor(reader, "velocity_std", block)
        slabs = (
            (part, rho[own], v[:, own], w[:, own], None if std is None else std[:, inner])
            for part, own, inner in _slabs(block)
        )
        sum_slab = partial(_sum_truth, cut=cut, cell=cell, rate=rate)
        if not is_truth:
            sum_slab = partial(_sum_method, reader=reader, cut=cut, cell=cell, rate=rate)
        for found in map_ahead(sum_slab, slabs):
            total.add_slab(name, found, 0 if is_truth else len(SHARED) + number - 1)
        if also is not None:
            also(rho, w)
    return total


def _slabs(block: Block) -> Iterator[tuple[Block, slice, slice]]:
    """Yield slabs of a block along x, their x range in the haloed block, and in the block."""
    (x, y, z), (nx, ny, nz) = block.origin, block.shape
    rows = max(1, _SLAB_CELLS // (ny * nz))
    for first in range(0, nx, rows):
        count = min(rows, nx - first)
        part = Block((x + first, y, z), (count, ny, nz))
        yield part, slice(first, first + count + 2), slice(first, first + count)


def _inner(haloed: Tensor) -> Tensor:
    return haloed[..., 1:-1, 1:-1, 1:-1]


def _square(field: Tensor) -> Floats:
    """Return the squared length of a float64 vector field, which is overwritten."""
    result: Floats = field.square_().sum(dim=0).numpy()
    return result


def _sum_truth(job: Slab, cut: Pair, cell: float, rate: float) -> SlabSum:
    """Return the sums of a slab for the truth: its distributions and :data:`SHARED`."""
    block, rho, v, *_ = job
    runs = Runs(*cut, block.origin, block.shape)
    infall = QUANTITIES["divergence"].make({"velocity": v}, cell).double().square_().numpy()
    mass, truth2 = _inner(rho).double().numpy(), _square(_inner(v).double())
    values = [*runs.moments(infall, block.origin), runs.sum(mass), runs.sum(truth2)]
    counts = sum_distributions(rho, v, v, cell, rate)
    return SlabSum(counts, CoarseSum(runs.origin, np.stack(values)))


def _sum_method(job: Slab, reader: FieldReader, cut: Pair, cell: float, rate: float) -> SlabSum:
    """Return the sums of a slab for a method."""
    block, rho, v, w, std = job
    runs = Runs(*cut, block.origin, block.shape)
    counts = sum_distributions(rho, v, w, cell, rate)
    own = _inner(rho), _inner(v), _inner(w)
    squares = runs.sum(_square(own[2].double().sub_(own[1])))
    each, intervals = reader.particles_per_cell, reader.intervals
    return SlabSum(
        counts,
        CoarseSum(runs.origin, squares[None]),
        sum_residual(*own),
        None if each is None else sum_by_particles(*own, each),
        None if std is None or intervals is None else sum_calibration(*own, std, intervals),
    )


def _counts(coarse: CoarseSum, grid: int) -> Floats:
    """Return the number of cells in each coarse cell of the box."""
    widths = np.diff(first_cells(grid, coarse.values.shape[-1])).astype(np.float64)
    counts: Floats = widths[:, None, None] * widths[:, None] * widths
    return counts


def strongest_infall(coarse: CoarseSum, grid: int, box_size: float) -> tuple[int, int, int]:
    """Return the cell of the box around which the squared divergence is largest.

    The squared divergence on coarse cells is smoothed by a Gaussian of 8 Mpc/h. The result is its
    centroid within the coarse cell that has the maximum.
    """
    bins = coarse.values.shape[-1]
    infall = coarse.values[0] / _counts(coarse, grid)
    k = 2.0 * np.pi / box_size * np.fft.fftfreq(bins, 1.0 / bins)
    window = np.exp(-0.5 * (_INFALL_SCALE * k) ** 2)
    modes = np.fft.fftn(infall) * window[:, None, None] * window[:, None] * window
    peak = np.unravel_index(int(np.argmax(np.fft.ifftn(modes).real)), infall.shape)
    total, *moments = (float(values[peak]) for values in coarse.values[:4])
    if total == 0.0:
        x, y, z = (int(index) * grid // bins for index in peak)
    else:
        x, y, z = (round(moment / total) for moment in moments)
    return x, y, z


def residual_maps(coarse: CoarseSum, grid: int, methods: Sequence[str]) -> dict[str, Array]:
    """Return the rms residual over columns of the box along z, km/s, shape (g, g), float32."""
    columns = _counts(coarse, grid).sum(axis=-1)
    squares = coarse.values[len(SHARED) :].sum(axis=-1)
    return {
        name: np.sqrt(one / columns).astype(np.float32)
        for name, one in zip(methods, squares, strict=True)
    }


def largest_residuals(
    coarse: CoarseSum, grid: int, box_size: float, methods: Sequence[str]
) -> dict[str, list[Json]]:
    """Return the coarse cells with the largest rms residual of each method, worst first."""
    counts, starts = _counts(coarse, grid), first_cells(grid, coarse.values.shape[-1])
    mass, truth2 = coarse.values[4] / counts, coarse.values[5] / counts
    middle = 0.5 * (starts[1:] + starts[:-1]) * (box_size / grid)
    found: dict[str, list[Json]] = {}
    for name, squares in zip(methods, coarse.values[len(SHARED) :], strict=True):
        means = squares / counts
        order = np.argsort(-means, axis=None, kind="stable")[:_WORST]
        cells = [np.unravel_index(int(at), means.shape) for at in order]
        found[name] = [
            {
                "centre": [float(middle[index]) for index in at],
                "rms": float(np.sqrt(means[at])),
                "density": float(mass[at]),
                "truth_rms": float(np.sqrt(truth2[at])),
            }
            for at in cells
        ]
    return found
