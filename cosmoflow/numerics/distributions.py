"""Histograms of speeds, residuals, angles, divergences and curls, which can be added up.

The edges are fixed, so that counts of blocks, shards and boxes add up; values beyond the edges
count in the outermost bins. Counts are integers: their sum does not depend on the order, and any
decomposition of a box gives the same result. The joint distributions with the density are those of
Wu et al. 2021, Figure 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.bin_search import find_asinh, find_log10, place, prepare_search
from cosmoflow.numerics.compiled import compiled

Counts = NDArray[np.int64]


class Axis(NamedTuple):
    """Bins of equal width in a function of a quantity.

    Attributes
    ----------
    first, step : float
        The lowest edge and the bin width, in terms of the function's value. Both are short in
        binary, so that dividing by the width puts a value on an edge into the bin above it.
    bins : int
        Number of bins.
    scale : {'linear', 'log10', 'asinh'}
        The function. ``asinh`` is linear below 1 and logarithmic above, on either side of zero.
    unit : str
        Unit of the quantity; empty for a ratio.
    """

    first: float
    step: float
    bins: int
    scale: str
    unit: str

    def edges(self) -> NDArray[np.float64]:
        """Return the ``bins + 1`` edges, float64, in the quantity's unit."""
        edges = self.first + self.step * np.arange(self.bins + 1, dtype=np.float64)
        if self.scale == "linear":
            return edges
        return np.sinh(edges) if self.scale == "asinh" else np.power(10.0, edges)


AXES: Final[dict[str, Axis]] = {
    "speed": Axis(0.0, 20.0, 100, "linear", "km/s"),
    "residual": Axis(0.0, 10.0, 100, "linear", "km/s"),
    "ratio": Axis(0.0, 1 / 32, 64, "linear", ""),
    "cosine": Axis(-1.0, 1 / 64, 128, "linear", ""),
    "momentum": Axis(-1.0, 1 / 16, 96, "log10", "km/s"),
    "density": Axis(-2.0, 1 / 16, 80, "log10", ""),
    "divergence": Axis(-6.0, 1 / 8, 96, "asinh", "f a H"),
    "curl": Axis(-9.0, 3 / 16, 96, "asinh", "f a H"),
}
"""The bins: of ``|v|``, ``|v_residual|``, ``|v_residual| / |v_true|``, the cosine of the angle
between predicted and true velocity, ``|p|``, the density over its mean, and ``theta`` and
``(curl p)_x`` over ``f a H``; to linear order ``theta / (f a H)`` is minus the density contrast."""

ONE_POINT: Final = ("speed", "residual", "ratio", "cosine", "momentum")
JOINT: Final = {
    "density_divergence": ("density", "divergence"),
    "density_curl": ("density", "curl"),
}

_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    **{name: (AXES[name].bins,) for name in ONE_POINT},
    **{name: (AXES[a].bins, AXES[b].bins) for name, (a, b) in JOINT.items()},
}

# Constants of an axis for numba: first edge, width, last bin; or what a search needs.
(_SPEED, _RESIDUAL, _RATIO, _COSINE, _MOMENTUM, _DENSITY, _DIVERGENCE, _CURL) = (
    (axis.first, axis.step, axis.bins - 1.0)
    if axis.scale == "linear"
    else prepare_search(axis.edges(), axis.first, axis.step)
    for axis in AXES.values()
)


@dataclass(frozen=True, eq=False)
class DistributionSum:
    """Histograms of a velocity over cells.

    Attributes
    ----------
    cells : int
        Cells counted.
    counts : dict of ndarray
        int64. By the names of :data:`ONE_POINT`, shape ``(bins,)``, and of :data:`JOINT`, shape
        ``(density bins, bins)``. Cells where the truth is at rest have no ``ratio``, and cells
        where either velocity is at rest have no ``cosine``; all other counts include every cell.
    """

    cells: int
    counts: dict[str, Counts]

    @classmethod
    def zero(cls) -> Self:
        """Return the count of no cells, the neutral element of ``+``."""
        return cls(0, {name: np.zeros(shape, np.int64) for name, shape in _SHAPES.items()})

    def __add__(self, other: DistributionSum) -> DistributionSum:
        return DistributionSum(
            self.cells + other.cells,
            {name: counts + other.counts[name] for name, counts in self.counts.items()},
        )

    def figures(self) -> dict[str, Any]:
        """Return ``cells`` and the counts by name as lists of int, ready for JSON."""
        return {"cells": self.cells} | {name: c.tolist() for name, c in self.counts.items()}


def bin_edges() -> dict[str, list[float]]:
    """Return the edges of every axis of :data:`AXES`, one more than its bins, in its unit."""
    return {name: axis.edges().tolist() for name, axis in AXES.items()}


def sum_distributions(
    density: Tensor, truth: Tensor, prediction: Tensor, cell_size: float, rate: float
) -> DistributionSum:
    """Count the cells of a block by their predicted velocity and its residual.

    For the distributions of the truth, pass it as ``prediction``.

    Parameters
    ----------
    density : Tensor
        Shape ``(nx + 2, ny + 2, nz + 2)``, float32, density over its mean: the block's cells and a
        halo of one cell, which is used for derivatives and not counted.
    truth, prediction : Tensor
        Shape ``(3, nx + 2, ny + 2, nz + 2)``, float32, km/s, with the same halo.
    cell_size : float
        Side of a cell, Mpc/h.
    rate : float
        ``f a H``, km/s per Mpc/h, the unit in which divergence and curl are binned.

    Returns
    -------
    DistributionSum
        Counts of ``nx * ny * nz`` cells.

    Raises
    ------
    ValueError
        The shapes do not match, or ``rate`` is not positive.
    """
    if density.dim() != 3 or min(density.shape) < 3:
        raise ValueError(f"a block with a halo of one cell has no shape {tuple(density.shape)}")
    for field in (truth, prediction):
        if field.shape != (3, *density.shape):
            raise ValueError(
                f"a velocity of shape {tuple(field.shape)} does not match a density of shape "
                f"{tuple(density.shape)}"
            )
    if not rate > 0.0:
        raise ValueError(f"f a H is {rate}, not positive")
    found = DistributionSum.zero()
    blocks = (field.cpu().contiguous().numpy() for field in (density, truth, prediction))
    _count_cells(*blocks, np.float32(2.0 * cell_size), float(rate), *found.counts.values())
    nx, ny, nz = (cells - 2 for cells in density.shape)
    return DistributionSum(nx * ny * nz, found.counts)


# One pass keeps a cell's numbers in registers. Separate tensor operations took four times as long
# and several times the block's memory.
@compiled(error_model="numpy")
def _count_cells(  # type: ignore[no-untyped-def]
    density, truth, prediction, spacing, rate, speeds, residuals, ratios, cosines, momenta,
    divergences, curls,
):  # fmt: skip
    """Count the inner cells of a block; ``spacing`` is the distance between opposite neighbours."""
    nx, ny, nz = density.shape
    for i in range(1, nx - 1):
        for j in range(1, ny - 1):
            for k in range(1, nz - 1):
                v2 = w2 = r2 = vw = 0.0
                for c in range(3):
                    v, w = np.float64(truth[c, i, j, k]), np.float64(prediction[c, i, j, k])
                    v2 += v * v
                    w2 += w * w
                    r2 += (w - v) * (w - v)
                    vw += v * w
                true_speed, speed, residual = math.sqrt(v2), math.sqrt(w2), math.sqrt(r2)
                rho = np.float64(density[i, j, k])
                speeds[place(speed, _SPEED)] += 1
                residuals[place(residual, _RESIDUAL)] += 1
                if true_speed > 0.0:
                    ratios[place(residual / true_speed, _RATIO)] += 1
                if true_speed * speed > 0.0:
                    cosines[place(vw / (true_speed * speed), _COSINE)] += 1
                # Zero mass has the logarithm minus infinity, which belongs in the lowest bins;
                # negative densities from ringing or noise count there too.
                momentum = row = 0
                if rho > 0.0:
                    row = find_log10(rho, _DENSITY)
                    if speed > 0.0:
                        momentum = find_log10(rho * speed, _MOMENTUM)
                momenta[momentum] += 1
                # In float32 and in the same order as numerics.calculus.
                x = (prediction[0, i + 1, j, k] - prediction[0, i - 1, j, k]) / spacing
                y = (prediction[1, i, j + 1, k] - prediction[1, i, j - 1, k]) / spacing
                z = (prediction[2, i, j, k + 1] - prediction[2, i, j, k - 1]) / spacing
                slope = np.float64(x + y + z) / rate
                divergences[row, find_asinh(slope, _DIVERGENCE)] += 1
                zy = (
                    density[i, j + 1, k] * prediction[2, i, j + 1, k]
                    - density[i, j - 1, k] * prediction[2, i, j - 1, k]
                ) / spacing
                yz = (
                    density[i, j, k + 1] * prediction[1, i, j, k + 1]
                    - density[i, j, k - 1] * prediction[1, i, j, k - 1]
                ) / spacing
                curls[row, find_asinh(np.float64(zy - yz) / rate, _CURL)] += 1
