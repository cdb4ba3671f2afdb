"""Errors that a model expects of its own predictions: training and calibration of their sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cosmoflow.numerics.conditions import CONDITIONS_PER_TERM, count_distinct

LOW: Final = -2.0
STEP: Final = 0.5
KNOTS: Final = 10
"""Knots of the calibration in the standardised logarithm of the density: -2 to 2.5."""

INSIDE_68: Final = 0.6827
INSIDE_95: Final = 0.95

_BEND: Final = 0.99
"""Share of the sizes that are believed as they are."""
_BIN: Final = 0.25
"""Width of bins in the logarithm of the sizes above."""

_RIDGE: Final = 0.01
"""Weight, in blocks, that holds the coefficients of the condition small."""

_LARGEST_LOG_INTERVAL: Final = 5.0
"""Logarithm of an interval that no errors reach."""

_FEWEST: Final = 300
"""Fewest cells of a block at a knot for the block to count there."""


@dataclass(frozen=True)
class ErrorScale:
    """Calibration of the sizes of errors that a network expects.

    Attributes
    ----------
    log_factors : tuple of tuple of float
        Logarithms of the factors of the network's sizes at :data:`KNOTS` values of the standardised
        logarithm of the density, so that 68.27 % of the errors of a component are smaller than the
        size. Each has the coefficients of :func:`features`, or of as many as it is long.
    interval_95 : float
        Half the width of the interval that holds 95 % of the errors, in sizes. With
        ``log_interval_95`` that of all conditions together, which :meth:`at` replaces.
    bend, growth : float
        A network's size ``s`` above ``bend``, in units of the target's rms, counts as ``bend * (s /
        bend)**growth``: in the densest cells networks expect many times the errors there.
    reach : tuple of (float, float)
        Least and greatest value of each coordinate in the calibration, beyond which factors and
        interval are those at its edge; empty if there are no coordinates, or if it is not known.
    log_interval_95 : tuple of float
        Coefficients, as of a row of ``log_factors``, of the logarithm of ``interval_95`` in one
        condition; empty if it is the same in all.
    """

    log_factors: tuple[tuple[float, ...], ...]
    interval_95: float
    bend: float = 1.0
    growth: float = 1.0
    reach: tuple[tuple[float, float], ...] = ()
    log_interval_95: tuple[float, ...] = ()

    def at(self, coordinates: Sequence[float]) -> ErrorScale:
        """Return the calibration at the standardised coordinates of a condition."""
        if self.reach:
            pairs = zip(coordinates, self.reach, strict=True)
            coordinates = [min(max(one, low), high) for one, (low, high) in pairs]
        table = np.array(self.log_factors)
        known = features(coordinates)[: table.shape[1]]
        found, interval = table @ known, self.interval_95
        if self.log_interval_95:
            # 95 % of the errors need a larger interval than 68 %.
            log_interval = float(np.dot(self.log_interval_95, known))
            interval = math.exp(min(max(log_interval, 0.0), _LARGEST_LOG_INTERVAL))
        factors = tuple((one,) for one in found.tolist())
        return replace(
            self, log_factors=factors, interval_95=interval, reach=(), log_interval_95=()
        )

    def size(self, log_size: Tensor, log_density: Tensor) -> Tensor:
        """Return calibrated sizes in units of the target's rms.

        Parameters
        ----------
        log_size : Tensor
            Logarithms of a network's sizes, shape ``(..., 3, n, n, n)``.
        log_density : Tensor
            Standardised logarithms of the density, shape ``(..., 1, n, n, n)``.
        """
        return self.bent(log_size.exp()) * self.factor(log_density)

    def bent(self, size: Tensor) -> Tensor:
        """Return a network's sizes, with those above the bend growing more slowly."""
        above = (size / self.bend).clamp(min=1.0)
        return torch.minimum(size, size.new_tensor(self.bend)) * above**self.growth

    def factor(self, log_density: Tensor) -> Tensor:
        """Return the factors of one condition at standardised logarithms of the density.

        They are linear between knots.
        """
        place = ((log_density - LOW) / STEP).clamp(0.0, KNOTS - 1.0)
        below = place.floor().clamp(max=KNOTS - 2.0)
        table = torch.tensor(self.log_factors, dtype=place.dtype, device=place.device)[:, 0].exp()
        index = below.long()
        return torch.lerp(table[index], table[index + 1], place - below)


UNCALIBRATED: Final = ErrorScale(((0.0,),) * KNOTS, 1.96)


def features(coordinates: Sequence[float]) -> list[float]:
    """Return 1, the standardised coordinates of a condition, the products of pairs, the cubes."""
    pairs = itertools.combinations_with_replacement(coordinates, 2)
    cubes = (one**3 for one in coordinates)
    return [1.0, *coordinates, *(one * two for one, two in pairs), *cubes]


def feature_counts(coordinates: int) -> tuple[int, int, int, int]:
    """Return how many :func:`features` may be used: the constant, linear, quadratic ones, all."""
    linear = 1 + coordinates
    quadratic = linear + coordinates * linear // 2
    return 1, linear, quadratic, quadratic + coordinates


def size_loss(residual: Tensor, log_size: Tensor) -> Tensor:
    """Return the loss of expected sizes: the negative log-likelihood of Laplace's distribution.

    Its tails are those of velocity errors more nearly than a Gaussian's, so rare large errors do
    not rule the sizes.

    Parameters
    ----------
    residual, log_size : Tensor
        Errors in units of the target's rms, and the logarithms of their expected sizes, both
        ``(batch, 3, n, n, n)``.
    """
    return (residual.abs() * torch.exp(-log_size) + log_size).mean()


def calibrate(
    residuals: Sequence[NDArray[np.float32]],
    sizes: Sequence[NDArray[np.float32]],
    log_densities: Sequence[NDArray[np.float32]],
    coordinates: Sequence[Sequence[float]],
) -> ErrorScale:
    """Calibrate sizes on blocks whose errors are known.

    Parameters
    ----------
    residuals, sizes : sequence of ndarray
        Errors and expected sizes of blocks, shape ``(3, n, n, n)``.
    log_densities : sequence of ndarray
        Standardised logarithms of the density, shape ``(n, n, n)``.
    coordinates : sequence of sequence of float
        Standardised coordinates of the conditions of the blocks; empty ones for one condition.
        Factors and interval depend on them as far as there are conditions enough: twice as many as
        coefficients.
    """
    scale = fit_growth(residuals, sizes)
    ratios = [
        np.abs(r / scale.bent(torch.from_numpy(s)).numpy()).reshape(3, -1)
        for r, s in zip(residuals, sizes, strict=True)
    ]
    points = [torch.from_numpy(one.ravel()) for one in log_densities]
    design = np.array([features(where) for where in coordinates])
    wanted = np.full((KNOTS, len(ratios)), np.nan)
    counts = np.zeros((KNOTS, len(ratios)))
    for block, (ratio, point) in enumerate(zip(ratios, points, strict=True)):
        nearest = np.clip(np.rint((point.numpy() - LOW) / STEP), 0, KNOTS - 1)
        for knot in range(KNOTS):
            inside = nearest == knot
            counts[knot, block] = inside.sum()
            if counts[knot, block] >= _FEWEST:
                wanted[knot, block] = np.log(np.quantile(ratio[:, inside], INSIDE_68))
    whole = np.log([np.quantile(ratio, INSIDE_68) for ratio in ratios])
    allowed = feature_counts(len(coordinates[0]))
    # A knot at which no block has cells enough has the factor of all cells.
    empty = ~np.isfinite(wanted).any(axis=1)
    wanted[empty], counts[empty] = np.median(whole), 1.0
    rows = [
        _fit_conditions(design, one, number, allowed)
        for one, number in zip(wanted, counts, strict=True)
    ]
    reach = tuple(
        (float(min(values)), float(max(values))) for values in zip(*coordinates, strict=True)
    )
    scale = replace(scale, log_factors=tuple(rows), reach=tuple(reach))
    scaled = [
        ratio / scale.at(where).factor(point).numpy()
        for ratio, point, where in zip(ratios, points, coordinates, strict=True)
    ]
    intervals = np.log([np.quantile(ratio, INSIDE_95) for ratio in scaled])
    row = _fit_conditions(design, intervals, np.ones(len(scaled)), allowed)
    # With too few conditions the interval is that of all errors.
    depends = any(row[1:])
    return replace(
        scale,
        interval_95=float(np.quantile(np.concatenate(scaled, 1), INSIDE_95)),
        log_interval_95=row if depends else (),
    )


def fit_growth(
    residuals: Sequence[NDArray[np.float32]], sizes: Sequence[NDArray[np.float32]]
) -> ErrorScale:
    """Return a calibration that only tells how the largest sizes grow.

    Above the size that 99 % of the cells have at most, the size that holds 68.27 % of the errors is
    fitted by a power of the network's size.

    Parameters
    ----------
    residuals, sizes : sequence of ndarray
        Errors and expected sizes of blocks, of the same shapes.
    """
    size = np.concatenate([one.ravel() for one in sizes])
    error = np.abs(np.concatenate([one.ravel() for one in residuals]))
    bend = float(np.quantile(size, _BEND))
    above = size > bend
    points, error = np.log(size[above] / bend), error[above]
    bins = np.floor(points / _BIN).astype(int)
    rows = []
    for number in range(int(bins.max(initial=-1)) + 1):
        inside = bins == number
        if (count := int(inside.sum())) >= _FEWEST:
            wanted = np.log(np.quantile(error[inside], INSIDE_68))
            rows.append((float(np.median(points[inside])), wanted, math.sqrt(count)))
    growth = 1.0
    if len(rows) > 1:
        where, wanted, weights = np.array(rows).T
        growth = float(np.clip(np.polyfit(where, wanted, 1, w=weights)[0], 0.0, 1.0))
    return replace(UNCALIBRATED, bend=bend, growth=growth)


def _fit_conditions(
    design: NDArray[np.float64],
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    allowed: Sequence[int],
) -> tuple[float, ...]:
    """Fit a number that is known in some blocks as a function of their conditions.

    Coefficients other than the constant are pulled towards 0. Those for which there are too few
    conditions are 0.

    Parameters
    ----------
    design : ndarray
        The :func:`features` of the blocks, shape ``(blocks, coefficients)``.
    values, weights : ndarray
        The number in each block, NaN where it is not known, and what the block counts.
    allowed : sequence of int
        Numbers of coefficients that may be fitted, see :func:`feature_counts`.
    """
    known = np.isfinite(values)
    rows, values, weights = design[known], values[known], weights[known]
    weight = np.sqrt(weights / weights.mean())
    conditions = count_distinct(rows)
    used = max([one for one in allowed if conditions >= CONDITIONS_PER_TERM * one], default=1)
    rows = rows * (np.arange(rows.shape[1]) < used)
    ridge = np.sqrt(_RIDGE) * np.eye(rows.shape[1])
    ridge[0, 0] = 0.0
    found, *_ = np.linalg.lstsq(
        np.concatenate([weight[:, None] * rows, ridge]),
        np.concatenate([weight * values, np.zeros(len(ridge))]),
        rcond=1e-9,
    )
    return tuple(found.tolist())


def freeze_all_but_errors(network: nn.Module) -> list[nn.Parameter]:
    """Freeze a network except its head for errors; return the parameters of the head."""
    head = []
    for name, parameter in network.named_parameters():
        learns = "errors." in name
        parameter.requires_grad_(learns)
        if learns:
            head.append(parameter)
    return head
