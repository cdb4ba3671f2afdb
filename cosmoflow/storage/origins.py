"""Records of what the flows in a fields store were made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cosmoflow.storage.fields import FieldStore

LINEAR: Final = "linear_velocity"
WIENER: Final = "wiener_velocity"
MADE_FROM: Final = "made_from"
"""Attribute that holds the origin of a velocity; for ``linear_velocity``, one for each radius."""

Origin = Mapping[str, Any]
"""Origin of a flow: checksum of the density, box size, redshift, cosmology, f a H."""

_RATE: Final = "growth_rate_hubble"
_ROUNDING: Final = 1e-9
"""Relative difference up to which two f a H count as equal: libraries round differently."""


def describe_origin(store: FieldStore, rate: float) -> dict[str, Any]:
    """Return what a flow of a store's density is made from.

    Parameters
    ----------
    store : FieldStore
        A store with the variable ``density``.
    rate : float
        ``f a H``, km/s per Mpc/h.
    """
    return {
        "density": store.checksum("density"),
        "box_size": store.metadata.box_size,
        "redshift": store.metadata.redshift,
        "cosmology": store.metadata.cosmology.model_dump(mode="json"),
        _RATE: rate,
    }


def is_same_origin(noted: Origin | None, origin: Origin | None) -> bool:
    """Return whether two flows have the same origin; None stands for a flow without a record."""
    if noted is None or origin is None:
        return noted is origin
    one, other = dict(noted), dict(origin)
    rate, expected = one.pop(_RATE, None), other.pop(_RATE, None)
    if not isinstance(rate, float) or not isinstance(expected, float):
        return False
    return one == other and math.isclose(rate, expected, rel_tol=_ROUNDING)


def noted_origin(store: FieldStore, radius: float | None = None) -> Origin | None:
    """Return the recorded origin of a stored flow; None if there is no record.

    Parameters
    ----------
    radius : float, optional
        Radius of the linear velocity, Mpc/h; by default the Wiener velocity is meant.
    """
    name = WIENER if radius is None else LINEAR
    if name not in store.variables:
        return None
    noted: Any = store.attributes(name).get(MADE_FROM)
    if radius is not None and isinstance(noted, Mapping):
        noted = noted.get(scale_key(radius))
    return noted if isinstance(noted, Mapping) else None


def scale_key(radius: float) -> str:
    """Return the key of a radius, Mpc/h, in the attribute of ``linear_velocity``."""
    return repr(float(radius))
