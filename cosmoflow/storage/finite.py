"""Checks of the values of fields: of all that are written, and of those of other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block, intersect
from cosmoflow.storage.metadata import attributes_of
from cosmoflow.units import SPEED_OF_LIGHT

REGION: Final = "region"
"""The group attribute for the region that a store holds: cells ``[from, to]`` of each axis."""

_CAUSES: Final[Mapping[str, str]] = {
    "infer": "the model's numbers overflow on this density: try --set infer.precision=float32, or "
    "another model (cosmoflow models lists those that ship), and look at the density's largest "
    "value",
    "paint": "look at the particles' velocities and masses: a sum of them overflows",
    "derive": "look at the field that is derived from: its values overflow",
    "simulate": "use more time steps, or a larger box",
}
"""Remedies by the stage that writes: the likely cause, and what to do about it."""


_CACHED: Final = 1 << 18
"""Most numbers that are looked at in one piece."""


def region_block(ranges: Sequence[Sequence[int]]) -> Block:
    """Return the block of a :data:`REGION` attribute."""
    (x, x1), (y, y1), (z, z1) = ranges
    return Block((x, y, z), (x1 - x, y1 - y, z1 - z))


def check_inside(region: Block | None, block: Block, where: str) -> None:
    """Refuse a block that is not inside the region that a store holds; None means all cells.

    Raises
    ------
    DataError
    """
    if region is not None and intersect(block, region) != block:
        high = tuple(np.add(region.origin, region.shape).tolist())
        raise DataError(
            "the store holds a region of the box only",
            where=where,
            limit=f"cells from {region.origin} to {high}",
            remedy="predict the whole box: run infer without --region",
        )


def check_speed(velocity: NDArray[np.float32], where: str) -> None:
    """Refuse a velocity, km/s, above the speed of light: its unit is another.

    Raises
    ------
    DataError
    """
    fastest = max(float(velocity.max()), -float(velocity.min()))
    if fastest > SPEED_OF_LIGHT:
        raise DataError(
            "the velocity is above the speed of light",
            where=where,
            value=f"{fastest:g} km/s",
            limit=f"{SPEED_OF_LIGHT:g} km/s",
            remedy="velocities are in km/s: convert them, and say so in `units`",
        )


def check_finite(
    values: NDArray[np.float32], group: zarr.Group, where: str, block: Block | None = None
) -> None:
    """Refuse to write values that are not finite.

    Parameters
    ----------
    values : ndarray
        Shape ``(..., nx, ny, nz)``.
    group : zarr.Group
        The output. If it has a region, cells outside of it are NaN and are not checked.
    where : str
        The output and the variable, for the message.
    block : Block, optional
        The cells; by default the whole grid.

    Raises
    ------
    DataError
        The message names the likely cause.
    """
    if block is None:
        block = Block((0, 0, 0), values.shape[-3:])
    bad = count_not_finite(values)
    if not bad:
        return
    attributes = attributes_of(group)
    if REGION in attributes:
        region = region_block(attributes[REGION])
        inside: tuple[Any, ...] = tuple(
            slice(max(low - first, 0), max(low + length - first, 0))
            for first, low, length in zip(block.origin, region.origin, region.shape, strict=True)
        )
        bad = count_not_finite(values[(..., *inside)])
    if bad:
        provenance = attributes.get("provenance", {})
        place = f"{where}, block of {block.shape} cells from {block.origin}"
        raise not_finite(bad, values.size, provenance, place)


def not_finite(bad: int, size: int, provenance: Mapping[str, Any], where: str) -> DataError:
    """Return the error for a result that is not finite.

    Parameters
    ----------
    bad, size : int
        Number of values that are not finite, and of all values.
    provenance : mapping
        Provenance of the output; the message names its stage and its inputs.
    where : str
        The output, the variable and the cells.
    """
    stage = str(provenance.get("stage", ""))
    sources = provenance.get("sources") or {}
    made_from = ", ".join(f"{role} {source}" for role, source in sources.items())
    return DataError(
        "the result holds values that are not finite, so it is not written",
        where=f"{where}; made from {made_from}" if made_from else where,
        value=f"{bad} of {size} values are NaN or infinite",
        limit="finite values",
        remedy=_CAUSES.get(stage, "look at the inputs: their values overflow"),
    )


def count_not_finite(values: NDArray[Any]) -> int:
    """Return how many numbers are not finite; a single pass if there are none."""
    if values.size > _CACHED and values.flags.c_contiguous:
        # Part after part, so that the masks stay in the cache.
        flat = values.reshape(-1)
        return sum(
            count_not_finite(flat[first : first + _CACHED])
            for first in range(0, flat.size, _CACHED)
        )
    finite = np.isfinite(values)
    return 0 if finite.all() else int(finite.size - np.count_nonzero(finite))
