"""Cubic interpolation, without the quarter of a second that scipy.interpolate takes to import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class NaturalSpline:
    """The cubic spline through points whose second derivative is zero at both ends.

    Parameters
    ----------
    x, y : ndarray
        Shape ``(n,)``, n >= 3; ``x`` strictly increasing.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        step = np.diff(x)
        slope = np.diff(y) / step
        # The second derivatives solve a tridiagonal system; n is a few thousand at most.
        diagonal, right = (2.0 * (step[:-1] + step[1:])).tolist(), (6.0 * np.diff(slope)).tolist()
        beside = step[1:-1].tolist()
        for row, width in enumerate(beside, start=1):
            factor = width / diagonal[row - 1]
            diagonal[row] -= factor * width
            right[row] -= factor * right[row - 1]
        curvature = np.zeros(len(x))
        last = 0.0
        for row in reversed(range(len(right))):
            last = (right[row] - (beside[row] * last if row < len(beside) else 0.0)) / diagonal[row]
            curvature[row + 1] = last
        self._x = x
        # Coefficients of powers of the distance from the left end of each interval.
        self._coefficients = (
            y[:-1],
            slope - step * (2.0 * curvature[:-1] + curvature[1:]) / 6.0,
            curvature[:-1] / 2.0,
            np.diff(curvature) / (6.0 * step),
        )

    def __call__(self, x: Floats) -> Floats:
        """Return the spline."""
        interval, t = self._find(x)
        a, b, c, d = (one[interval] for one in self._coefficients)
        found: Floats = a + t * (b + t * (c + t * d))
        return found

    def slope(self, x: Floats) -> Floats:
        """Return the derivative of the spline."""
        interval, t = self._find(x)
        _, b, c, d = (one[interval] for one in self._coefficients)
        found: Floats = b + t * (2.0 * c + 3.0 * t * d)
        return found

    def _find(self, x: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Return the interval of each place, and its distance from the interval's left end."""
        interval = np.clip(np.searchsorted(self._x, x, side="right") - 1, 0, len(self._x) - 2)
        return interval, x - self._x[interval]
