"""Residual velocities as sums over cells, which slabs and boxes add up.

Everything is accumulated in float64 in slabs along x, so that no temporary is as large as the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
)

LOG_DENSITY_EDGES: Final = (-2.0, 3.0)
LOG_DENSITY_STEP: Final = 0.25
_BINS: Final = round((LOG_DENSITY_EDGES[1] - LOG_DENSITY_EDGES[0]) / LOG_DENSITY_STEP)

# Cells that are worked on at once: bounds the temporaries to some 100 MB.
_BLOCK_CELLS: Final = 1 << 21


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """Sums over cells of what a predicted velocity misses.

    Attributes
    ----------
    totals : ndarray
        Shape ``(17,)``, float64; powers of km/s, and of the mean density where mass-weighted.
    bins : ndarray
        Shape ``(3, 20)``, float64: cells, squared true velocity and squared residual in bins of
        log10 density, the outermost of which are open.
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
        # Round-off may leave a tiny negative variance.
        return math.sqrt(max(0.0, self._mean(square, over) - self._mean(name, over) ** 2))

    def truth(self) -> dict[str, Any]:
        """Return the figures of the true velocity, km/s."""
        return {
            "rms": math.sqrt(self._mean("truth2")),
            "mass_weighted_rms": math.sqrt(self._mean("mass_truth2", "mass")),
            "mean_speed": self._mean("truth_speed"),
            "scatter_speed": self._scatter("truth_speed", "truth2"),
        }

    def figures(self) -> dict[str, Any]:
        """Return the figures of the prediction, km/s unless they are ratios.

        ``rms`` is the root of the mean over cells of the squared residual vector; ``slope`` is the
        least-squares one of prediction on truth; ``relative`` is ``rms`` over the truth's.
        """
        per_axis = [math.sqrt(self._mean(f"residual2_{axis}")) for axis in "xyz"]
        rms, norm = math.sqrt(self._mean("residual2")), self._mean("truth2")
        both = math.sqrt(norm * self._mean("prediction2"))
        dot = self._mean("dot")
        return {
            "rms": rms,
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
    """Sum the figures of a predicted velocity over the cells of a block.

    Parameters
    ----------
    density : Tensor
        Shape ``(mx, my, mz)``, float32, density over its mean.
    truth, prediction : Tensor
        Shape ``(3, mx, my, mz)``, float32, km/s.
    """
    mx, my, mz = density.shape
    rows = max(1, _BLOCK_CELLS // (my * mz))
    total = ResidualSum.zero()
    for first in range(0, mx, rows):
        part = slice(first, min(first + rows, mx))
        total = total + _sum_slab(density[part], truth[:, part], prediction[:, part])
    return total


def _sum_slab(density: Tensor, truth: Tensor, prediction: Tensor) -> ResidualSum:
    rho, v, w = density.double(), truth.double(), prediction.double()
    squares = (w - v).square_()
    residual2 = squares.sum(dim=0)
    truth2, prediction2 = v.square().sum(dim=0), w.square().sum(dim=0)
    dot = (v * w).sum(dim=0)
    product = (truth2 * prediction2).sqrt_()
    # A cell at rest has no direction.
    directed = product > 0.0
    cosine = torch.where(directed, dot / product.clamp(min=1e-300), 0.0)
    found: dict[str, Tensor | float] = {
        "cells": float(rho.numel()),
        "mass": rho.sum(),
        "truth2": truth2.sum(),
        "prediction2": prediction2.sum(),
        "dot": dot.sum(),
        "residual": residual2.sqrt().sum(),
        "residual2": residual2.sum(),
        "residual2_x": squares[0].sum(),
        "residual2_y": squares[1].sum(),
        "residual2_z": squares[2].sum(),
        "mass_residual2": (rho * residual2).sum(),
        "mass_truth2": (rho * truth2).sum(),
        "truth_speed": truth2.sqrt().sum(),
        "prediction_speed": prediction2.sqrt().sum(),
        "directed": float(directed.sum()),
        "cosine": cosine.sum(),
        "cosine2": cosine.square().sum(),
    }
    place = (torch.log10(rho) - LOG_DENSITY_EDGES[0]) / LOG_DENSITY_STEP
    # Empty cells have no logarithm: minus infinity belongs in the lowest bin.
    index = place.clamp(0.0, _BINS - 1.0).nan_to_num(nan=0.0).long().reshape(-1)
    bins = [
        torch.bincount(index, weights=weights.reshape(-1), minlength=_BINS)
        for weights in (torch.ones_like(rho), truth2, residual2)
    ]
    return ResidualSum(
        np.array([float(found[name]) for name in _NAMES]), torch.stack(bins).cpu().numpy()
    )
