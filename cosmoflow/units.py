"""Units, conventions and physical constants.

Lengths are comoving Mpc/h, wavenumbers h/Mpc, velocities peculiar and physical in km/s, densities
in units of the mean. Boxes are periodic cubes; the centre of cell ``i`` of an axis of ``n`` cells
is at ``(i + 1/2) L / n``.
"""

from __future__ import annotations

from typing import Final

H0_KM_S_PER_MPC_H: Final = 100.0
"""Hubble constant, km/s per Mpc/h: 100 by the definition of h."""

CRITICAL_DENSITY: Final = 2.77536627e11
"""Critical density today, 3 (100 km/s/Mpc)^2 / (8 pi G), in (M_sun/h) / (Mpc/h)^3."""

SPEED_OF_LIGHT: Final = 299792.458
"""Speed of light, km/s."""

LARGEST_BOX: Final = 30_000.0
"""Largest accepted box side, Mpc/h. Larger values must be in another unit: the observable universe
is 19,000 Mpc/h across."""

COMPONENTS: Final = ("x", "y", "z")
"""Labels of the leading ``component`` dimension of every vector field."""

LENGTH: Final = "Mpc/h"
VELOCITY: Final = "km/s"
WAVENUMBER: Final = "h/Mpc"
MASS: Final = "M_sun/h"
DIMENSIONLESS: Final = "1"
DIVERGENCE: Final = "km/s/(Mpc/h)"

EIGENVALUES: Final = (1, 2, 3)
"""Labels of the leading ``eigenvalue`` dimension of a tensor's eigenvalues, in ascending order."""

INTERLACED: Final = "interlaced_"
"""Prefix of the name of the second grid of an interlaced pair."""

SMOOTHED: Final = "smoothed_"
"""Prefix of the names of Gaussian-smoothed fields."""


def format_bytes(count: float) -> str:
    """Return a size in memory or on disk as human-readable text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024.0:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024.0
    return f"{count:.1f} TiB"


SAME: Final = 0.01
"""Relative difference of two residuals up to which a box or two do not tell which is smaller."""


def format_count(count: int, noun: str) -> str:
    """Return a number of things whose plural ends in s: 1 node, 1,200 nodes."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def is_less(value: float, other: float) -> bool:
    """Return whether a residual is smaller than another by more than :data:`SAME`."""
    return value < (1.0 - SAME) * other


def format_difference(value: float, other: float) -> str:
    """Return how much more or less than another a residual is, in words before the other."""
    change = 100.0 * (value / other - 1.0) if other else 0.0
    if f"{abs(change):.1f}" == "0.0":
        return "as much as"
    return f"{abs(change):.1f} % {'less' if change < 0.0 else 'more'} than"
