"""Units, conventions and the few physical constants, stated once.

Lengths are comoving Mpc/h, wavenumbers h/Mpc, velocities peculiar and physical in km/s, densities
in units of the mean. Boxes are periodic cubes; the centre of cell ``i`` of an axis of ``n`` cells
lies at ``(i + 1/2) L / n``.
"""

from __future__ import annotations

from typing import Final

H0_KM_S_PER_MPC_H: Final = 100.0
"""The Hubble constant in km/s per Mpc/h: 100 by the definition of h."""

CRITICAL_DENSITY: Final = 2.77536627e11
"""Critical density today in (M_sun/h) / (Mpc/h)^3, 3 (100 km/s/Mpc)^2 / (8 pi G)."""

SPEED_OF_LIGHT: Final = 299792.458
"""km/s."""

LARGEST_BOX: Final = 30_000.0
"""Side of a box, Mpc/h, above which the unit must be another: the universe that can be observed is
19,000 Mpc/h across."""

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

_FIELD_UNITS: Final[dict[str, tuple[str, str]]] = {
    "density": (DIMENSIONLESS, "matter density over its mean"),
    "momentum": (VELOCITY, "matter momentum (1 + delta) v"),
    "velocity": (VELOCITY, "mass-weighted peculiar velocity"),
    "velocity_std": (
        VELOCITY,
        "standard deviation of the predictions that velocity is the mean of",
    ),
    "momentum_std": (
        VELOCITY,
        "standard deviation of the predictions that momentum is the mean of",
    ),
    "linear_velocity": (VELOCITY, "linear-theory velocity of the Gaussian-smoothed density"),
    "restored_velocity": (VELOCITY, "velocity with the power of small scales restored"),
    "wiener_velocity": (VELOCITY, "velocity by a Wiener filter of the density and its functions"),
    "interlaced_density": (DIMENSIONLESS, "density on the grid moved back by half a cell"),
    "interlaced_momentum": (VELOCITY, "momentum on the grid moved back by half a cell"),
    "divergence": (DIVERGENCE, "velocity divergence"),
    "vorticity": (DIVERGENCE, "velocity curl"),
    "velocity_shear": (DIVERGENCE, "eigenvalues of (d_i v_j + d_j v_i) / 2, ascending"),
    "linear_density": (DIMENSIONLESS, "linear density contrast, extrapolated to z = 0"),
    "displacement": (LENGTH, "first-order displacement, extrapolated to z = 0"),
}

INTERLACED: Final = "interlaced_"
"""What the name of the second grid of an interlaced pair begins with."""

SMOOTHED: Final = "smoothed_"
"""What the name of a Gaussian-smoothed field begins with."""

FIELD_UNITS: Final[dict[str, tuple[str, str]]] = {
    **_FIELD_UNITS,
    **{
        f"{SMOOTHED}{name}": (unit, f"{long_name}, after Gaussian smoothing")
        for name, (unit, long_name) in _FIELD_UNITS.items()
        # A linear velocity comes smoothed at any radius; an interlaced grid is for spectra; and
        # a spread smoothed is not the spread of what is smoothed.
        if name != "linear_velocity"
        and not name.startswith(INTERLACED)
        and not name.endswith("_std")
    },
}
"""``(unit, long name)`` of every variable that a fields store may hold."""


def format_bytes(count: float) -> str:
    """Return a size in memory or on disk that a person can read."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024.0:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024.0
    return f"{count:.1f} TiB"
