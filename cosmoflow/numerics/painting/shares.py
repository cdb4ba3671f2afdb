"""Shares of the cells of a particle's cloud, and the units in which they are added up."""

from __future__ import annotations

from typing import Final

from numba import njit

MASS_UNITS: Final = float(2**36)
"""Units of a mean particle mass, which make a weight good to 1.5e-11.

A cell can hold 2**27 = 1.3e8 mean masses before int64 overflows.
"""
MOST_MASS: Final = 2**26
"""Mean masses from which on a cell is refused, and after which sums are looked at again.

What is below it before as much is added cannot overflow.
"""
LONGEST_RUN: Final = 2**20
"""Particles between two looks at how much has been added."""
MOMENTUM_UNITS: Final = float(2**26)
"""Units of a mean particle mass at 1 km/s; a cell can hold a net momentum of 1.4e11 of these."""
LEAST_MASS: Final = MASS_UNITS / MOMENTUM_UNITS
"""Units of mass from which on a cell has a velocity: below, rounding would move it by 0.5 km/s."""

# What is larger than this many units, a particle of 2**15 mean masses or more, is counted in units
# of 2**12 of them: numbers are rounded in 52 bits.
LARGE: Final = float(2**51)
COARSE_BITS: Final = 12
COARSE: Final = float(2**-12)
_SIXTH: Final = 1.0 / 6.0


# With clouds that begin at cell floor(u + offset), f is what the floor leaves, 0 to 1.


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
