"""Shares of the cells in a particle's cloud, and the fixed-point units of their sums."""

from __future__ import annotations

from typing import Final

from numba import njit

MASS_UNITS: Final = float(2**36)
"""Units per mean particle mass, which give a weight a precision of 1.5e-11.

A cell can hold 2**27 = 1.3e8 mean masses before int64 overflows.
"""
MOST_MASS: Final = 2**26
"""Mean masses at which a cell is refused, and after which the sums are checked again.

A sum below this limit cannot overflow before the same amount is added.
"""
LONGEST_RUN: Final = 2**20
"""Maximum particles between two checks of how much has been added."""
MOMENTUM_UNITS: Final = float(2**26)
"""Units per mean particle mass times km/s.

A cell can hold a net momentum of 1.4e11 mean masses times km/s.
"""
LEAST_MASS: Final = MASS_UNITS / MOMENTUM_UNITS
"""Minimum mass, in units, of a cell with a velocity; below it rounding errors reach 0.5 km/s."""

# Amounts above this many units (particles of 2**15 mean masses or more) are counted in units 2**12
# times larger, because rounding works in 52 bits.
LARGE: Final = float(2**51)
COARSE_BITS: Final = 12
COARSE: Final = float(2**-12)
_SIXTH: Final = 1.0 / 6.0


# For a cloud that begins at cell floor(u + offset), f is the fractional part, 0 to 1.


@njit
def ngp_shares(f):  # type: ignore[no-untyped-def]
    """Return the share of the nearest cell along an axis."""
    return (1.0,)


@njit
def cic_shares(f):  # type: ignore[no-untyped-def]
    """Return the shares of the two cells of a cloud along an axis."""
    return 1.0 - f, f


@njit
def tsc_shares(f):  # type: ignore[no-untyped-def]
    """Return the shares of the three cells of a triangular cloud along an axis."""
    d = f - 0.5
    return 0.5 * (0.5 - d) ** 2, 0.75 - d * d, 0.5 * (0.5 + d) ** 2


@njit
def pcs_shares(f):  # type: ignore[no-untyped-def]
    """Return the shares of the four cells of a piecewise cubic cloud along an axis."""
    g = 1.0 - f
    return (
        g * g * g * _SIXTH,
        (4.0 - 6.0 * f * f + 3.0 * f * f * f) * _SIXTH,
        (4.0 - 6.0 * g * g + 3.0 * g * g * g) * _SIXTH,
        f * f * f * _SIXTH,
    )
