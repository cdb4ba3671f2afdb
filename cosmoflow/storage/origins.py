"""What a flow that is kept in a fields store was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cosmoflow.storage.fields import FieldStore

LINEAR: Final = "linear_velocity"
WIENER: Final = "wiener_velocity"
MADE_FROM: Final = "made_from"
"""The attribute that says what a velocity was made from; of ``linear_velocity``, by radius."""

Origin = Mapping[str, Any]
"""What a flow was made from: checksum of the density, box size, redshift, cosmology, f a H."""

_RATE: Final = "growth_rate_hubble"
_ROUNDING: Final = 1e-9
"""Relative difference of two f a H that are the same: what other versions of libraries make of it.
"""


def describe_origin(store: FieldStore, rate: float) -> dict[str, Any]:
    """Return what a flow of a store's density is made from.

    Parameters
    ----------
    store : FieldStore
        With ``density``.
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
    """Tell whether two flows were made from the same; None is what a flow without a note has."""
    if noted is None or origin is None:
        return noted is origin
    one, other = dict(noted), dict(origin)
    rate, expected = one.pop(_RATE, None), other.pop(_RATE, None)
    if not isinstance(rate, float) or not isinstance(expected, float):
        return False
    return one == other and math.isclose(rate, expected, rel_tol=_ROUNDING)


def noted_origin(store: FieldStore, radius: float | None = None) -> Origin | None:
    """Return what a stored flow says that it was made from; None if it says nothing.

    Parameters
    ----------
    store : FieldStore
        With the flow.
    radius : float, optional
        Of the linear velocity, Mpc/h; none means the Wiener velocity.
    """
    name = WIENER if radius is None else LINEAR
    if name not in store.variables:
        return None
    noted: Any = store.attributes(name).get(MADE_FROM)
    if radius is not None and isinstance(noted, Mapping):
        noted = noted.get(scale_key(radius))
    return noted if isinstance(noted, Mapping) else None


def scale_key(radius: float) -> str:
    """Return how a radius, Mpc/h, is called in the note of ``linear_velocity``."""
    return repr(float(radius))
