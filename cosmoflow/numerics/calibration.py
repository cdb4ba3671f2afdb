"""Expected errors of a velocity against its true residual: coverage and reliability."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.bin_search import find_log10, prepare_search
from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.distributions import AXES, Axis
from cosmoflow.numerics.exact_sums import (
    ExactSum,
    add_exactly,
    empty_tallies,
    sum_tallies,
)

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

Intervals = tuple[float, float]
"""Half-widths of the intervals that should hold :data:`EXPECTED` of the errors of one component,
in units of the expected size."""

NORMAL: Final[Intervals] = (1.0, 1.96)
"""The intervals of normal errors."""
EXPECTED: Final = (0.6827, 0.95)
"""Share of the errors in each interval."""
QUARTERS: Final = (0.25, 0.5, 0.75)

STD_AXIS: Final = Axis(-1.0, 1 / 8, 40, "log10", "km/s")
"""Bins of the expected size, 0.1 to 10,000 km/s; the outermost are open."""
_DENSITY_AXIS: Final = AXES["density"]
_MERGED: Final = 4
"""Bins of density that make one bin of the residual by density."""
_STD, _DENSITY = (
    prepare_search(axis.edges(), axis.first, axis.step) for axis in (STD_AXIS, _DENSITY_AXIS)
)


@dataclass(frozen=True, eq=False)
class CalibrationSum:
    """Exact sums over the components of a velocity in some cells, in any order.

    Attributes
    ----------
    intervals : (float, float)
        Half-widths of the intervals in units of the expected size.
    inside : ndarray
        Shape ``(3, 80)``, int64, in bins of log10 density, 16 a decade: all components, and those
        whose residual is in the first and in the second interval.
    components : ndarray
        Shape ``(40,)``, int64: components in each bin of :data:`STD_AXIS`.
    squares : ndarray of ExactSum
        Shape ``(2, 40)``: squared residual and squared expected size, km/s squared.
    """

    intervals: Intervals
    inside: Counts
    components: Counts
    squares: NDArray[np.object_]

    def __add__(self, other: CalibrationSum) -> CalibrationSum:
        return CalibrationSum(
            self.intervals,
            self.inside + other.inside,
            self.components + other.components,
            self.squares + other.squares,
        )

    def figures(self) -> dict[str, Any]:
        """Return the coverage, overall and by density, and the reliability curve.

        Shares are of components. ``quartiles`` are the bins of density merged so that each holds as
        nearly as possible a quarter of the cells; their edges are log10 of the density over its
        mean, and the outermost are open.
        """
        edges = _DENSITY_AXIS.first + _DENSITY_AXIS.step * np.arange(_DENSITY_AXIS.bins + 1)
        total = int(self.components.sum())
        residual, std = (_rms(self.squares[row].sum(), total) for row in (0, 1))
        cuts = [0, *_cuts(self.inside[0]), len(edges) - 1]
        quartiles = np.stack(
            [self.inside[:, low:high].sum(axis=1) for low, high in itertools.pairwise(cuts)],
            axis=1,
        )
        merged = self.inside.reshape(3, -1, _MERGED).sum(axis=2)
        return {
            "intervals": list(self.intervals),
            "expected": list(EXPECTED),
            "components": total,
            "rms": residual,
            "expected_rms": std,
            **_coverage(self.inside.sum(axis=1)),
            "quartiles": {
                "log10_density_edges": edges[cuts[1:-1]],
                "cell_share": quartiles[0] / total if total else np.full(4, np.nan),
                **_coverage(quartiles),
            },
            "by_density": {
                "log10_density_edges": edges[::_MERGED],
                "cells": (merged[0] // 3).tolist(),
                **_coverage(merged),
            },
            "reliability": {
                "std_edges": STD_AXIS.edges(),
                "components": self.components.tolist(),
                "expected": [*map(_rms, self.squares[1], self.components.tolist())],
                "rms": [*map(_rms, self.squares[0], self.components.tolist())],
            },
        }


def _cuts(components: Counts) -> list[int]:
    """Return the three edges of bins below which the shares are closest to the quarters."""
    below = np.concatenate([[0], np.cumsum(components)])
    return [int(np.argmin(np.abs(below - quarter * below[-1]))) for quarter in QUARTERS]


def _coverage(inside: Counts) -> dict[str, Any]:
    """Return the shares of components in the intervals; NaN where there are none."""
    shares = np.full((2, *inside.shape[1:]), np.nan)
    np.divide(inside[1:], inside[0], shares, where=inside[0] > 0)
    return {"coverage_68": shares[0], "coverage_95": shares[1]}


def _rms(total: ExactSum, count: int) -> float:
    return math.sqrt(float(total) / count) if count else math.nan


def sum_calibration(
    density: Tensor, truth: Tensor, prediction: Tensor, std: Tensor, intervals: Intervals
) -> CalibrationSum:
    """Compare the expected errors of a velocity with its residual in the cells of a block.

    Parameters
    ----------
    density : Tensor
        Shape ``(mx, my, mz)``, float32, density over its mean.
    truth, prediction, std : Tensor
        Shape ``(3, mx, my, mz)``, float32, km/s: velocities, and the expected size of
        each component of the prediction.
    intervals : (float, float)
        Half-widths of the intervals in units of ``std``.
    """
    inside = np.zeros((3, _DENSITY_AXIS.bins), np.int64)
    components, tallies = np.zeros(STD_AXIS.bins, np.int64), empty_tallies(2, STD_AXIS.bins)
    fields = (field.cpu().numpy() for field in (density, truth, prediction, std))
    _add_cells(*fields, intervals, inside, components, tallies)
    return CalibrationSum(intervals, inside, components, sum_tallies(tallies))


@compiled()
def _add_cells(  # type: ignore[no-untyped-def]
    density, truth, prediction, std, intervals, inside, components, tallies
):
    nx, ny, nz = density.shape
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                rho = np.float64(density[i, j, k])
                # A cell without mass is in the lowest bin.
                row = find_log10(rho, _DENSITY) if rho > 0.0 else 0
                for c in range(3):
                    residual = abs(
                        np.float64(prediction[c, i, j, k]) - np.float64(truth[c, i, j, k])
                    )
                    error = np.float64(std[c, i, j, k])
                    inside[0, row] += 1
                    inside[1, row] += residual <= intervals[0] * error
                    inside[2, row] += residual <= intervals[1] * error
                    place = find_log10(error, _STD) if error > 0.0 else 0
                    components[place] += 1
                    add_exactly(residual * residual, tallies[0, place])
                    add_exactly(error * error, tallies[1, place])
