"""Residual velocities as float64 sums over cells; sums of blocks and boxes can be added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.bin_search import find_log10, prepare_search
from cosmoflow.numerics.compiled import compiled

Floats = NDArray[np.float64]

_NAMES: Final = (
    "cells",
    "mass",
    "truth2",
    "prediction2",
    "dot",
    "residual",
    "residual2",
    "residual2_x",
    "residual2_y",
    "residual2_z",
    "mass_residual2",
    "mass_truth2",
    "truth_speed",
    "prediction_speed",
    "directed",
    "cosine",
    "cosine2",
    "empty",
    "filled_residual2",
)

LOG_DENSITY_EDGES: Final = (-2.0, 3.0)
LOG_DENSITY_STEP: Final = 0.25
_BINS: Final = round((LOG_DENSITY_EDGES[1] - LOG_DENSITY_EDGES[0]) / LOG_DENSITY_STEP)
_SEARCH: Final = prepare_search(
    np.power(10.0, LOG_DENSITY_EDGES[0] + LOG_DENSITY_STEP * np.arange(_BINS + 1)),
    LOG_DENSITY_EDGES[0],
    LOG_DENSITY_STEP,
)


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """Sums over cells of the residual of a predicted velocity.

    Attributes
    ----------
    totals : ndarray
        Shape ``(19,)``, float64; powers of km/s, and of the mean density where mass-weighted.
    bins : ndarray
        Shape ``(3, 20)``, float64: cells, squared true velocity and squared residual in bins of
        log10 density; the outermost bins are open.
    """

    totals: Floats
    bins: Floats

    @classmethod
    def zero(cls) -> Self:
        """Return the sum over no cells, the neutral element of ``+``."""
        return cls(np.zeros(len(_NAMES)), np.zeros((3, _BINS)))

    def __add__(self, other: ResidualSum) -> ResidualSum:
        return ResidualSum(self.totals + other.totals, self.bins + other.bins)

    def _mean(self, name: str, over: str = "cells") -> float:
        total, count = self._total(name), self._total(over)
        return total / count if count > 0.0 else math.nan

    def _total(self, name: str) -> float:
        return float(self.totals[_NAMES.index(name)])

    def _scatter(self, name: str, square: str, over: str = "cells") -> float:
        # Round-off may give a tiny negative variance.
        return math.sqrt(max(0.0, self._mean(square, over) - self._mean(name, over) ** 2))

    def truth(self) -> dict[str, Any]:
        """Return statistics of the true velocity, km/s."""
        return {
            "rms": math.sqrt(self._mean("truth2")),
            "mass_weighted_rms": math.sqrt(self._mean("mass_truth2", "mass")),
            "mean_speed": self._mean("truth_speed"),
            "scatter_speed": self._scatter("truth_speed", "truth2"),
            "empty_share": self._mean("empty"),
        }

    def figures(self) -> dict[str, Any]:
        """Return statistics of the prediction, in km/s unless they are ratios.

        ``rms`` is the root of the mean over cells of the squared residual vector; ``slope`` is the
        least-squares slope of prediction on truth; ``relative`` is ``rms`` over the truth's rms;
        ``rms_with_mass`` is ``rms`` over the cells whose true density is not zero.
        """
        per_axis = [math.sqrt(self._mean(f"residual2_{axis}")) for axis in "xyz"]
        rms, norm = math.sqrt(self._mean("residual2")), self._mean("truth2")
        both = math.sqrt(norm * self._mean("prediction2"))
        dot = self._mean("dot")
        filled = self._total("cells") - self._total("empty")
        return {
            "rms": rms,
            "rms_with_mass": math.sqrt(self._total("filled_residual2") / filled)
            if filled > 0.0
            else math.nan,
            "rms_1d": rms / math.sqrt(3.0),
            "rms_per_axis": per_axis,
            "mass_weighted_rms": math.sqrt(self._mean("mass_residual2", "mass")),
            "relative": rms / math.sqrt(norm) if norm > 0.0 else math.nan,
            "mean_residual": self._mean("residual"),
            "scatter_residual": self._scatter("residual", "residual2"),
            "mean_cosine": self._mean("cosine", "directed"),
            "scatter_cosine": self._scatter("cosine", "cosine2", "directed"),
            "correlation": dot / both if both > 0.0 else math.nan,
            "slope": dot / norm if norm > 0.0 else math.nan,
            "mean_speed": self._mean("prediction_speed"),
            "scatter_speed": self._scatter("prediction_speed", "prediction2"),
        }

    def by_density(self) -> dict[str, Any]:
        """Return the rms of truth and residual, km/s, in bins of log10 density; NaN if empty."""
        count, truth2, residual2 = self.bins
        means = np.full((2, _BINS), np.nan)
        np.divide([truth2, residual2], count, out=means, where=count > 0.0)
        truth, residual = np.sqrt(means)
        edges = LOG_DENSITY_EDGES[0] + LOG_DENSITY_STEP * np.arange(_BINS + 1)
        return {
            "log10_density_edges": edges,
            "cells": count,
            "truth": truth,
            "residual": residual,
        }


def sum_residual(density: Tensor, truth: Tensor, prediction: Tensor) -> ResidualSum:
    """Sum the statistics of a predicted velocity over the cells of a block.

    Parameters
    ----------
    density : Tensor
        Shape ``(mx, my, mz)``, float32, density over its mean.
    truth, prediction : Tensor
        Shape ``(3, mx, my, mz)``, float32, km/s.
    """
    totals, bins = np.zeros(len(_NAMES)), np.zeros((3, _BINS))
    fields = (field.cpu().numpy() for field in (density, truth, prediction))
    _add_cells(*fields, totals, bins)
    return ResidualSum(totals, bins)


# One pass keeps a cell's numbers in registers. Separate tensor operations took ten times as long.
@compiled()
def _add_cells(  # type: ignore[no-untyped-def]
    density, truth, prediction, totals, bins
):
    """Add the cells of a block to the totals, in the order of ``_NAMES``, and to the bins."""
    nx, ny, nz = density.shape
    # Sum each row first: sums of few numbers lose fewer digits.
    row = np.empty(totals.size)
    for i in range(nx):
        for j in range(ny):
            row[:] = 0.0
            for k in range(nz):
                rho = np.float64(density[i, j, k])
                v0, w0 = np.float64(truth[0, i, j, k]), np.float64(prediction[0, i, j, k])
                v1, w1 = np.float64(truth[1, i, j, k]), np.float64(prediction[1, i, j, k])
                v2, w2 = np.float64(truth[2, i, j, k]), np.float64(prediction[2, i, j, k])
                r0, r1, r2 = (w0 - v0) ** 2, (w1 - v1) ** 2, (w2 - v2) ** 2
                truth2, prediction2 = v0 * v0 + v1 * v1 + v2 * v2, w0 * w0 + w1 * w1 + w2 * w2
                dot, residual2 = v0 * w0 + v1 * w1 + v2 * w2, r0 + r1 + r2
                row[1] += rho
                row[2] += truth2
                row[3] += prediction2
                row[4] += dot
                row[5] += math.sqrt(residual2)
                row[6] += residual2
                row[7] += r0
                row[8] += r1
                row[9] += r2
                row[10] += rho * residual2
                row[11] += rho * truth2
                row[12] += math.sqrt(truth2)
                row[13] += math.sqrt(prediction2)
                product = math.sqrt(truth2 * prediction2)
                # A cell at rest has no direction.
                if product > 0.0:
                    cosine = dot / product
                    row[14] += 1.0
                    row[15] += cosine
                    row[16] += cosine * cosine
                # The logarithm of an empty cell is minus infinity, which is in the lowest bin.
                place = 0
                if rho == 0.0:
                    row[17] += 1.0
                else:
                    row[18] += residual2
                if rho > 0.0:
                    place = find_log10(rho, _SEARCH)
                bins[0, place] += 1.0
                bins[1, place] += truth2
                bins[2, place] += residual2
            row[0] = nz
            totals += row
