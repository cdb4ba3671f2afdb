"""What says how far velocities can be trusted: expected errors, and the number of particles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cosmoflow.errors import DataError
from cosmoflow.events import Listener, Message, caution
from cosmoflow.numerics.calibration import NORMAL, Intervals
from cosmoflow.stages.inputs.particle_counts import particles_per_cell
from cosmoflow.stages.inputs.readers import VELOCITY_ERROR
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import Box

_KEYS = ("interval_68", "interval_95")
"""Attributes of :data:`VELOCITY_ERROR` that replace :data:`NORMAL`."""


def find_intervals(store: FieldStore, variable: str) -> Intervals | None:
    """Return the intervals of the expected errors of a velocity; None if it has no such errors.

    Raises
    ------
    DataError
        An interval is not a positive number, or the first is wider than the second.
    """
    if variable != "velocity" or VELOCITY_ERROR not in store.variables or _is_spread(store):
        return None
    attributes = store.attributes(VELOCITY_ERROR)
    found = [attributes.get(key, normal) for key, normal in zip(_KEYS, NORMAL, strict=True)]
    if not all(isinstance(width, int | float) and math.isfinite(width) for width in found) or not (
        0.0 < found[0] <= found[1]
    ):
        raise DataError(
            "the intervals of the expected errors are not two ascending positive numbers",
            where=f"{store.url}, {VELOCITY_ERROR}",
            value=", ".join(f"{key}: {width}" for key, width in zip(_KEYS, found, strict=True)),
            remedy="correct these attributes, or delete them for "
            + " and ".join(f"{width:g}" for width in NORMAL),
        )
    return float(found[0]), float(found[1])


def _is_spread(store: FieldStore) -> bool:
    """Return whether the variable is an ensemble's spread, as older versions wrote it."""
    return "predictions" in store.attributes(VELOCITY_ERROR)


def particles_of(box: Box) -> float | None:
    """Return the mean number of particles in a cell; None if the density does not tell it."""
    try:
        return particles_per_cell(box)
    except DataError:
        return None


def note_trust(true: FieldStore, found: Sequence[FieldStore], listener: Listener) -> list[str]:
    """Tell the listener, and return as notes, what is not measured about errors and particles."""
    for store in found:
        if VELOCITY_ERROR in store.variables and _is_spread(store):
            caution(
                listener,
                f"{store.url}: {VELOCITY_ERROR} is the spread of an ensemble's predictions, which "
                "an older version wrote under this name, not an expected error; its coverage is "
                "not measured; run infer again, which names the spread velocity_spread",
            )
    try:
        particles_per_cell(true)
    except DataError as error:
        note = (
            f"{true.url}: residuals are not split by the number of particles in a cell: "
            f"{error.what}; {error.remedy}"
        )
        listener(Message(note))
        return [note]
    return []
