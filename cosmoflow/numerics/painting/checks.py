"""Checks that particles are valid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.compiled import compiled
from cosmoflow.units import SPEED_OF_LIGHT

_FASTEST = np.float32(SPEED_OF_LIGHT)


@compiled()
def _all_real(position, velocity, size, fastest):  # type: ignore[no-untyped-def]
    """Check that all coordinates are in [0, size) and all velocities below the speed of light.

    NaN fails both checks. Counting instead of leaving at the first bad value lets the compiler
    vectorise the loops.
    """
    good = 0
    for x in position:
        good += (x >= 0.0) & (x < size)
    for v in velocity:
        good += (v >= -fastest) & (v <= fastest)
    return good == position.shape[0] + velocity.shape[0]


@compiled()
def _all_masses(mass):  # type: ignore[no-untyped-def]
    good = 0
    for m in mass:
        good += (m >= 0.0) & (m < np.inf)
    return good == mass.shape[0]


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).reshape(-1)


def check_particles(
    position: NDArray[np.float32],
    velocity: NDArray[np.float32],
    box_size: float,
    where: str,
    first: int = 0,
    mass: NDArray[np.float64] | None = None,
) -> None:
    """Check that particles are finite, inside the box and physically possible.

    Parameters
    ----------
    position, velocity : (n, 3) float32
        Comoving positions in Mpc/h and velocities in km/s.
    box_size : float
        Box size, Mpc/h.
    where : str
        Name of the store, for the error.
    first : int
        Index of the first particle in its store, for the error.
    mass : (n,) float64, optional
        Masses in any unit; must not be negative.

    Raises
    ------
    DataError
        A particle is invalid; the error names the first one.
    """
    if _all_real(_flat(position), _flat(velocity), np.float32(box_size), _FASTEST) and (
        mass is None or _all_masses(mass)
    ):
        return
    # At least one particle is invalid; finding out why may be slow.
    for name, values in (("position", position), ("velocity", velocity)):
        _refuse(
            ~np.isfinite(values).all(axis=1),
            values,
            f"a particle's {name} is not finite",
            where,
            first,
            remedy="the snapshot is damaged or was converted wrongly; write it again",
        )
    if mass is not None:
        _refuse(
            ~(np.isfinite(mass) & (mass >= 0.0)),
            mass,
            "a particle's mass is invalid",
            where,
            first,
            limit="finite, 0 or more",
        )
    # Such speeds would also overflow the fixed-point sums.
    _refuse(
        (np.abs(velocity) > SPEED_OF_LIGHT).any(axis=1),
        velocity,
        "a particle is faster than light",
        where,
        first,
        limit=f"{SPEED_OF_LIGHT:.0f} km/s",
        remedy="check the unit of the velocities: km/s, not cm/s or m/s",
    )
    _refuse(
        ((position < 0.0) | (position >= np.float32(box_size))).any(axis=1),
        position,
        "a particle is outside the box",
        where,
        first,
        limit=f"[0, {box_size}) Mpc/h on every axis",
        remedy="check the box size and the length unit (kpc?), or wrap the positions",
    )


def _refuse(
    bad: NDArray[np.bool_] | np.bool_,
    values: NDArray[Any],
    what: str,
    where: str,
    first: int,
    *,
    limit: str | None = None,
    remedy: str | None = None,
) -> None:
    """Raise a DataError that names the first bad particle, if any."""
    if bad.any():
        index = int(np.argmax(bad))
        raise DataError(
            what,
            where=f"{where}, particle {first + index} ({int(bad.sum())} in this chunk)",
            value=values[index].tolist(),
            limit=limit,
            remedy=remedy,
        )
