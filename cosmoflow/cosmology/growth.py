"""Solution of the growth equations of a cosmology, by polynomials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PANELS, _TERMS = 24, 20
"""Parts of the range of ln a, and coefficients of each polynomial: the errors are those of float64
(1e-13) for all dark energies and curvatures that the settings allow."""


@dataclass(frozen=True, eq=False)
class GrowthSolution:
    """``(D1, T D1, D2, T D2)`` over ln a, each divided by its growth in Einstein-de Sitter.

    Attributes
    ----------
    first, width : float
        Beginning of the first panel, and width of each, in ln a.
    coefficients : ndarray
        Of Chebyshev polynomials, shape ``(panels, 4, terms)``.
    """

    first: float
    width: float
    coefficients: Floats

    def __call__(self, log_a: Floats) -> Floats:
        """Return the four functions, shape ``(4, n)``, at ``n`` values of ln a."""
        place = (log_a - self.first) / self.width
        panel = np.clip(place.astype(np.int64), 0, _PANELS - 1)
        terms = chebyshev.chebvander(2.0 * (place - panel) - 1.0, _TERMS - 1)
        found: Floats = np.einsum("nk,nfk->fn", terms, self.coefficients[panel])
        return found


def solve_growth(
    Omega_m: float, hubble_ratio: Callable[[Floats], Floats], first: float, last: float
) -> GrowthSolution:
    """Solve the growth equations from ln a = ``first``, where growth is that of matter alone.

    With ``r = a^1.5 E``, the scaled functions obey

        d1' = p1 / r - d1,      p1' = 3/2 Omega_m d1 / r - 3/2 p1,
        d2' = p2 / r - 2 d2,    p2' = 3/2 Omega_m (d2 - d1^2) / r - 5/2 p2.

    In each panel linear algebra finds the polynomials that solve them at the zeros of a Chebyshev
    polynomial. The scaling keeps all four functions of order one over the whole range. scipy's
    solvers take a quarter of a second to import, and their interpolation is less accurate.

    Parameters
    ----------
    Omega_m : float
        Matter density today.
    hubble_ratio : callable
        ``E`` at scale factors.
    first, last : float
        Range of ln a.
    """
    width = (last - first) / _PANELS
    # Of the polynomials: values and slopes at the places where they are to solve the equations,
    # and values at the beginning of a panel.
    places = chebyshev.chebpts1(_TERMS - 1)
    value = chebyshev.chebvander(places, _TERMS - 1)
    derivatives = chebyshev.chebder(np.eye(_TERMS))
    slope = chebyshev.chebvander(places, _TERMS - 2) @ derivatives * (2.0 / width)
    begin = (-1.0) ** np.arange(_TERMS)

    def solve(order: int, inverse: Floats, source: Floats, beginning: Floats) -> Floats:
        """Return the coefficients of a growth function of an order, and of its slope."""
        coupling = inverse[:, None] * value
        equations = np.block(
            [
                [slope + order * value, -coupling],
                [-1.5 * Omega_m * coupling, slope + (order + 0.5) * value],
                [np.stack([begin, 0.0 * begin]), np.stack([0.0 * begin, begin])],
            ]
        )
        right = np.concatenate([np.zeros(_TERMS - 1), source, beginning])
        return np.linalg.solve(equations, right).reshape(2, _TERMS)

    root = Omega_m**0.5
    state = np.array([1.0, root, -3.0 / 7.0, -6.0 / 7.0 * root])
    coefficients = np.empty((_PANELS, 4, _TERMS))
    for panel in range(_PANELS):
        a = np.exp(first + width * (panel + 0.5 * (places + 1.0)))
        inverse = 1.0 / (a**1.5 * hubble_ratio(a))
        linear = solve(1, inverse, np.zeros(_TERMS - 1), state[:2])
        square = (value @ linear[0]) ** 2
        second = solve(2, inverse, -1.5 * Omega_m * inverse * square, state[2:])
        coefficients[panel] = np.concatenate([linear, second])
        # At its end all polynomials of a panel are 1.
        state = coefficients[panel].sum(axis=1)
    return GrowthSolution(first, width, coefficients)
