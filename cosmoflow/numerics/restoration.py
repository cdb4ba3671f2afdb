r"""Restoring the power that a mean-square prediction lacks on small scales.

Where streams cross, the velocity at a given density has scatter, and the prediction with the least
mean square is the mean of that scatter: its phases are right, its power is too low. An isotropic
filter restores the power without changing any mode's correlation with the truth:

.. math:: v'(k) = g_\parallel(|k|)\, v_\parallel(k) + g_\perp(|k|)\, v_\perp(k), \qquad
          g^2 = P_\mathrm{true} / P_\mathrm{predicted}

for the potential part and the rotational part, each measured in boxes whose velocity is known.
Restoring the power raises the mean square by the scatter: the prediction with the smallest
residual and the prediction with the right spectrum differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.conditions import ConditionCurves, place_on_knots
from cosmoflow.numerics.radial import RadialBins

Floats = NDArray[np.float64]

GAIN_STEP: Final = 0.2
"""Distance of the knots of gains that vary with the condition, in ``k cell``."""


@dataclass(frozen=True)
class PowerGain:
    """Gains of a predicted velocity in bins of k.

    Attributes
    ----------
    width : float
        Bin width, h/Mpc; bin ``b`` is centred on ``b`` widths.
    potential, rotational : tuple of float
        Gains per bin for the potential and the rotational part of the velocity.
    symmetries : int
        Number of rotated or reflected frames over which the predictions were averaged; a larger
        number lowers the power.
    """

    width: float
    potential: tuple[float, ...]
    rotational: tuple[float, ...]
    symmetries: int = 1

    def restore(self, velocity: Tensor, box_size: float) -> Tensor:
        """Return a predicted velocity with the power of the true one.

        Parameters
        ----------
        velocity : Tensor
            Shape ``(3, n, n, n)``, float32, km/s.
        box_size : float
            Box size, Mpc/h; it may differ from that of the boxes used to measure the gains.

        Returns
        -------
        Tensor
            Shape ``(3, n, n, n)``, float32, km/s.
        """
        cells = velocity.shape[-1]
        bins = RadialBins(self.width, len(self.potential))
        modes = fourier.forward(velocity)
        # Gains are constant within a bin, so that the power is exact in the box they come from.
        index = bins.index(cells, box_size).clamp_(1, bins.count - 1).view(modes.shape[1:])
        along, across = (
            torch.tensor(gains, dtype=torch.float32)[index]
            for gains in (self.potential, self.rotational)
        )
        potential = calculus.potential_part(modes, box_size)
        # The mean is in no bin and has no potential; keep it.
        across[0, 0, 0] = 1.0
        return fourier.inverse(
            modes.sub_(potential).mul_(across).add_(potential.mul_(along)), cells
        )


@dataclass(frozen=True, eq=False)
class GainSum:
    """Power of true and predicted parts, summed over the modes of bins; sums of boxes can be added.

    Attributes
    ----------
    bins : RadialBins
        Bins of k.
    true, predicted : ndarray
        Power of the potential and the rotational part, shape ``(2, bins)``, float64.
    """

    bins: RadialBins
    true: Floats
    predicted: Floats

    @classmethod
    def zero(cls, bins: RadialBins) -> Self:
        """Return the sum over no modes, the neutral element of ``+``."""
        return cls(bins, np.zeros((2, bins.count)), np.zeros((2, bins.count)))

    def __add__(self, other: GainSum) -> GainSum:
        if self.bins != other.bins:
            raise ValueError(f"cannot add sums with different bins: {self.bins}, {other.bins}")
        return GainSum(self.bins, self.true + other.true, self.predicted + other.predicted)

    def solve(self) -> PowerGain:
        """Return the gains; 1 where the prediction has no power."""
        ratio = np.ones_like(self.true)
        np.divide(self.true, self.predicted, out=ratio, where=self.predicted > 0.0)
        potential, rotational = (tuple(gains) for gains in np.sqrt(ratio).tolist())
        return PowerGain(self.bins.width, potential, rotational)


def fit_gains(
    sums: Sequence[GainSum], cell_sizes: Sequence[float], design: Floats
) -> ConditionCurves:
    """Fit the logarithms of the gains as functions of ``k cell`` and, linearly, of the condition.

    Predictions lose power towards the scale of the cells, so the gains of cells of all sizes are
    alike as functions of the phase from cell to cell.

    Parameters
    ----------
    sums : sequence of GainSum
        Sums of the boxes.
    cell_sizes : sequence of float
        Sides of their cells, Mpc/h.
    design : ndarray
        Terms of the conditions of the boxes, shape ``(boxes, terms)``: the constant first, then the
        coordinates. Columns to leave out are zero.
    """
    terms = design.shape[1]
    boxes = list(zip(sums, cell_sizes, design, strict=True))
    knots = 2 + max(
        int(one.bins.width * cell * one.bins.count / GAIN_STEP) for one, cell, _ in boxes
    )
    matrix = np.zeros((knots, terms, knots, terms))
    right = np.zeros((knots, terms, 2))
    for one, cell, row in boxes:
        phases = one.bins.width * cell * np.arange(one.bins.count)
        index, share = place_on_knots(phases, GAIN_STEP, knots)
        ratio = np.ones_like(one.true)
        known = (one.true > 0.0) & (one.predicted > 0.0)
        np.divide(one.true, one.predicted, out=ratio, where=known)
        # A bin counts by the modes that it holds; bin 0 is the mean.
        modes = np.arange(one.bins.count, dtype=np.float64) ** 2
        for b in np.flatnonzero(known.all(axis=0) & (modes > 0.0)):
            hats = ((index[b], 1.0 - share[b]), (index[b] + 1, share[b]))
            for n, mine in hats:
                right[n] += modes[b] * mine * np.outer(row, 0.5 * np.log(ratio[:, b]))
                for m, other in hats:
                    matrix[n, :, m] += modes[b] * mine * other * np.outer(row, row)
    flat = matrix.reshape(knots * terms, -1)
    diagonal = flat.diagonal().copy()
    flat[np.diag_indices_from(flat)] += 1e-3 * diagonal + 1e-9 * diagonal.max()
    found = np.linalg.solve(flat, right.reshape(knots * terms, 2)).reshape(knots, terms, 2)
    return ConditionCurves(GAIN_STEP, tuple(tuple(map(tuple, knot)) for knot in found.tolist()))


def sum_powers(true: Tensor, predicted: Tensor, box_size: float, bins: RadialBins) -> GainSum:
    """Sum the powers that :meth:`GainSum.solve` needs over the modes of a box.

    Parameters
    ----------
    true, predicted : Tensor
        Shape ``(3, n, n, n)``, float32, km/s.
    box_size : float
        Box size, Mpc/h.
    bins : RadialBins
        Bins of k.
    """
    index = bins.index(true.shape[-1], box_size)

    def powers(velocity: Tensor) -> Floats:
        modes = fourier.forward(velocity)
        potential = calculus.potential_part(modes, box_size)
        rotational = modes.sub_(potential)
        return np.stack([bins.sum_product(part, part, index) for part in (potential, rotational)])

    return GainSum(bins, powers(true), powers(predicted))
