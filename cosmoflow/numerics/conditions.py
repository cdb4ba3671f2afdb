"""Functions of the condition of a box: polynomials, and curves over k that vary with it.

A condition is a point in a space of a few coordinates, such as the logarithms of the linear
fluctuations and of the cell size. Coordinates are shifted and scaled to order one and cut off at
the range of the boxes that a function was fitted to, so nothing is extrapolated.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONDITIONS_PER_TERM: Final = 2
"""Fewest distinct conditions for each term of a function of the condition."""

_FLAT: Final = 1e-6
"""Coordinates that vary by less than this do not vary."""


@dataclass(frozen=True)
class ConditionSpace:
    """The range of conditions that functions are fitted to, and the degree of their polynomials.

    Attributes
    ----------
    low, high : tuple of float
        Smallest and largest value of each coordinate.
    degree : {0, 1, 2}
        Total degree of the polynomials.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    degree: int

    @classmethod
    def covering(cls, conditions: ArrayLike) -> Self:
        """Return the space of the conditions of boxes, shape ``(boxes, coordinates)``.

        The degree is the largest whose polynomials have at most half as many terms as there are
        distinct conditions; it is 0 for a single condition.
        """
        values = np.asarray(conditions, np.float64)
        low, high = values.min(axis=0), values.max(axis=0)
        found = cls(tuple(low.tolist()), tuple(high.tolist()), 0)
        count = count_distinct(found.standardise(values))
        for degree in (1, 2):
            larger = cls(found.low, found.high, degree)
            if count >= CONDITIONS_PER_TERM * larger.terms(values[0]).size:
                found = larger
        return found

    def standardise(self, condition: ArrayLike) -> Floats:
        """Return coordinates from -1 to 1, shape ``(..., coordinates)``; 0 if one never varies."""
        low, high = np.array(self.low), np.array(self.high)
        centre, half = 0.5 * (low + high), 0.5 * (high - low)
        varies = half > _FLAT
        inside = np.clip(np.asarray(condition, np.float64), low, high)
        return np.where(varies, (inside - centre) / np.where(varies, half, 1.0), 0.0)

    @property
    def linear(self) -> int:
        """Number of terms without products: the constant, and each coordinate that varies."""
        varying = sum(b - a > 2.0 * _FLAT for a, b in zip(self.low, self.high, strict=True))
        return 1 + varying * (self.degree > 0)

    def terms(self, condition: ArrayLike) -> Floats:
        """Return the terms of the polynomials at a condition: 1, each coordinate, their products.

        Coordinates that do not vary have no terms.
        """
        point = self.standardise(condition)
        varying = [
            float(value)
            for value, low, high in zip(point, self.low, self.high, strict=True)
            if high - low > 2.0 * _FLAT
        ]
        found = [1.0]
        for degree in range(1, self.degree + 1):
            for chosen in itertools.combinations_with_replacement(varying, degree):
                found.append(float(np.prod(chosen)))
        return np.array(found)


def count_distinct(rows: Floats) -> int:
    """Return how many conditions differ, from their coordinates or terms, one row for each."""
    return len(np.unique(rows.round(6), axis=0))


def fit_numbers(design: ArrayLike, values: ArrayLike) -> tuple[float, ...]:
    """Return the coefficients of a polynomial, by least squares.

    Parameters
    ----------
    design : array_like
        Terms of the conditions of boxes, shape ``(boxes, terms)``.
    values : array_like
        Values of the boxes, shape ``(boxes,)``.
    """
    found, *_ = np.linalg.lstsq(np.asarray(design), np.asarray(values), rcond=1e-6)
    return tuple(found.tolist())


@dataclass(frozen=True)
class ConditionCurves:
    """Curves over x whose values depend on the condition; linear in x between knots.

    Attributes
    ----------
    step : float
        Distance of the knots in x; the first knot is at 0.
    coefficients : nested tuple of float
        Shape ``(knots, terms, curves)``.
    """

    step: float
    coefficients: tuple[tuple[tuple[float, ...], ...], ...]

    def at(self, terms: Floats, x: ArrayLike) -> Floats:
        """Return the curves at a condition.

        Parameters
        ----------
        terms : ndarray
            Terms of the condition, see :meth:`ConditionSpace.terms`.
        x : array_like
            Wavenumbers, or what takes their place, shape ``(n,)``; curves are constant beyond the
            last knot.

        Returns
        -------
        (n, curves) float64
        """
        knots = np.einsum("ktc,t->kc", np.array(self.coefficients), terms)
        index, share = place_on_knots(x, self.step, len(knots))
        found: Floats = (1.0 - share)[:, None] * knots[index] + share[:, None] * knots[index + 1]
        return found


def place_on_knots(x: ArrayLike, step: float, knots: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the knot below each x, and the share of the way to the next knot."""
    place = np.clip(np.asarray(x, np.float64) / step, 0.0, knots - 1.0)
    index = np.minimum(place.astype(np.int64), knots - 2)
    return index, place - index
