"""Convert units and velocity conventions of other codes to comoving Mpc/h and peculiar km/s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.snapshot import SnapshotHints, VelocityConvention
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.units import CRITICAL_DENSITY

CM_PER_KPC: Final = 3.0856775814913673e21
GRAMS_PER_SOLAR_MASS: Final = 1.98841e33
GADGET_MASS: Final = 1e10
"""Gadget's usual mass unit, M_sun/h."""

VELOCITY_POWER: Final[dict[VelocityConvention, float]] = {
    "peculiar": 0.0,
    "gadget": 0.5,
    "canonical": -1.0,
    "comoving": 1.0,
}
"""Power of a that converts stored velocities to peculiar velocities a dx/dt."""

# Codes write kpc and the solar mass with three to eight digits.
_CONSTANT_SLACK: Final = 2e-3
# Rounding to float32 or a lossy filter puts positions outside the box by up to this share of L.
_EDGE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Conversion:
    """Factors from a file's units to ours.

    Parameters
    ----------
    length : float
        Comoving Mpc/h per unit.
    velocity : float
        Peculiar km/s per unit, powers of a included.
    mass : float
        M_sun/h per unit.
    lower : float
        Lower edge of the file's coordinates, Mpc/h; they are wrapped into [0, L).
    wrap : bool
        Whether to wrap positions into the box from anywhere.
    """

    length: float
    velocity: float
    mass: float = GADGET_MASS
    lower: float = 0.0
    wrap: bool = False

    def position(self, raw: NDArray[Any], box_size: float, where: str) -> NDArray[np.float32]:
        """Return positions in [0, L), (n, 3) float32, comoving Mpc/h.

        Raises
        ------
        DataError
            A position is outside the box by more than rounding.
        """
        x = raw.astype(np.float64)
        x *= self.length
        if self.wrap:
            x %= box_size
        else:
            slack = _EDGE * box_size
            low, high = self.lower - slack, self.lower + box_size + slack
            # A NaN passes this test: check_particles has a better error for it.
            beyond = (x < low) | (x > high)
            if beyond.any():
                # Reduce over the three columns only on failure: it is slow.
                outside = beyond.any(axis=1)
                index = int(np.argmax(outside))
                raise DataError(
                    "a particle is outside the box",
                    where=f"{where}, particle {index} of {len(x)} ({int(outside.sum())} such)",
                    value=f"{x[index].tolist()} Mpc/h",
                    limit=f"{self.lower:g} to {self.lower + box_size:g} Mpc/h on every axis",
                    remedy="check the length unit (hint length_unit: --set "
                    "snapshot.length_unit=kpc/h), or wrap the positions (hint wrap: "
                    "--set snapshot.wrap=true)",
                )
            x[x < 0.0] += box_size
            x[x >= box_size] -= box_size
        result = x.astype(np.float32)
        # The largest double below L may round up to L.
        result[result >= np.float32(box_size)] = 0.0
        return result


def snap(value: float, targets: Sequence[float], slack: float = _CONSTANT_SLACK) -> float:
    """Return the target that a value approximates, or the value itself."""
    for target in targets:
        if abs(value / target - 1.0) < slack:
            return target
    return value


def cgs_length(centimetres: float, h: float | None = None) -> float:
    """Return a comoving length unit, given in cm, in Mpc/h.

    Without ``h`` the unit is in cm/h, as in Gadget's headers; SWIFT's units are in cm.
    """
    megaparsecs = snap(centimetres / (1e3 * CM_PER_KPC), (1e-3, 1.0))
    return megaparsecs if h is None else megaparsecs * h


def cgs_mass(grams: float, h: float | None = None) -> float:
    """Return a mass unit in M_sun/h; ``h`` as in :func:`cgs_length`."""
    mass = snap(grams / GRAMS_PER_SOLAR_MASS, (GADGET_MASS, 1.0))
    return mass if h is None else mass * h


def cgs_velocity(cm_per_s: float) -> float:
    """Return a velocity unit in km/s."""
    return snap(cm_per_s / 1e5, (1.0,), 1e-5)


def hinted_length(hints: SnapshotHints, h: float | None) -> float | None:
    """Return the length unit of the hints, in Mpc/h, or None.

    Raises
    ------
    ConfigError
        The unit is without h, and h is unknown.
    """
    unit = hints.length_unit
    if unit is None or isinstance(unit, float):
        return unit
    size = 1e-3 if unit.startswith("kpc") else 1.0
    if unit.endswith("/h"):
        return size
    if h is None:
        raise ConfigError(
            "a length unit without h needs the value of h",
            value=f"length_unit: {unit}",
            remedy="give the hint h as well: --set snapshot.h=0.7",
        )
    return size * h


def mean_density(mass: float, box_size: float, Omega_m: float) -> float:
    """Return the density of a mass (M_sun/h) in a box (Mpc/h) over the mean matter density."""
    return mass / (box_size**3 * Omega_m * CRITICAL_DENSITY)


def first_of(header: Mapping[str, Any], *names: str) -> float | None:
    """Return the first nonzero attribute as a number; 0 means unknown in many headers."""
    return next((number for number in _numbers(header, names) if number != 0), None)


def number_of(header: Mapping[str, Any], *names: str) -> float | None:
    """Return the first finite attribute as a number; 0 counts."""
    return next(filter(math.isfinite, _numbers(header, names)), None)


def _numbers(header: Mapping[str, Any], names: Sequence[str]) -> Iterator[float]:
    for name in names:
        value = header.get(name)
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)
