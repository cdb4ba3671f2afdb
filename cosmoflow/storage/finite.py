"""No output holds values that are not finite: every block is looked at before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.metadata import attributes_of

REGION: Final = "region"
"""The group attribute that says, in cells ``[from, to]`` of each axis, what a store holds."""

_CAUSES: Final[Mapping[str, str]] = {
    "infer": "the model's numbers overflow on this density: try --set infer.precision=float32, or "
    "another model (cosmoflow models lists those that ship), and look at the density's largest "
    "value",
    "paint": "look at the particles' velocities and masses: a sum of them overflows",
    "derive": "look at the field that is derived from: its values overflow",
    "simulate": "use more time steps, or a larger box",
}
"""The likely cause, and what to do about it, by the stage that writes."""


def region_block(ranges: Sequence[Sequence[int]]) -> Block:
    """Return the cells that :data:`REGION` says."""
    (x, x1), (y, y1), (z, z1) = ranges
    return Block((x, y, z), (x1 - x, y1 - y, z1 - z))


def check_finite(
    values: NDArray[np.float32], group: zarr.Group, where: str, block: Block | None = None
) -> None:
    """Refuse to write values that are not finite.

    Parameters
    ----------
    values : ndarray
        Shape ``(..., nx, ny, nz)``.
    group : zarr.Group
        The output. Outside of its region, if it has one, there is nothing, which is written as NaN.
    where : str
        The output and the variable, for errors.
    block : Block, optional
        The cells; all of the grid if none.

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
        raise not_finite(bad, values.size, provenance, f"{where}, {_describe(block)}")


def not_finite(bad: int, size: int, provenance: Mapping[str, Any], where: str) -> DataError:
    """Return the error of a stage whose result is not finite.

    Parameters
    ----------
    bad, size : int
        How many values are not finite, and how many there are.
    provenance : mapping
        Of the output: its stage and its inputs tell where to look.
    where : str
        What was to be written.
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


def count_not_finite(values: NDArray[np.float32]) -> int:
    """Return how many values are not finite, in one pass if there are none."""
    planes = values.reshape(-1, *values.shape[-2:]) if values.flags.c_contiguous else values
    # Plane after plane, whose masks stay in the cache.
    return sum(_count(plane) for plane in planes)


def _count(plane: NDArray[np.float32]) -> int:
    finite = np.isfinite(plane)
    return 0 if finite.all() else int(finite.size - np.count_nonzero(finite))


def _describe(block: Block) -> str:
    return f"block of {block.shape} cells from {block.origin}"
