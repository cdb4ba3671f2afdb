"""The variables of a fields store: their dimensions, their coordinates, their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.field_table import FIELDS, LABELS
from cosmoflow.storage.transfer import write_part
from cosmoflow.units import LENGTH

COMPRESSORS = (BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec())
"""Compressors of floating-point arrays. LZ4 is three times as fast as zstd for 2 to 5 % more bytes
(measured). It decodes flipped bits to other numbers without an error; the checksum finds them."""

ROUNDED_COMPRESSORS = (
    BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
    Crc32cCodec(),
)
"""Compressors of rounded variables: shuffling bits makes them a fifth smaller (measured)."""

ROUNDED = "rounded_to_multiples_of"
"""The attribute of a rounded variable: the rounding step, in the variable's unit."""

SMOOTHING = "smoothing"
"""Name of the dimension, and of its coordinate, of the smoothing radii of ``linear_velocity``."""


def count_parts(name: str) -> int:
    """Return how many numbers a variable has in each cell (at each smoothing scale)."""
    return FIELDS[name].parts


def coordinate_writers(
    group: zarr.Group, grid: int, box_size: float, variables: Iterable[str]
) -> Iterator[Callable[[], None]]:
    """Yield functions that each write cell centres or the labels of a leading dimension."""
    centres = (np.arange(grid) + 0.5) * (box_size / grid)

    def write_centres(axis: str) -> None:
        coordinate = group.create_array(
            axis,
            shape=(grid,),
            dtype="float64",
            dimension_names=(axis,),
            overwrite=True,
            compressors=COMPRESSORS,
            # xarray labels axes of plots with the long name.
            attributes={
                "units": LENGTH,
                "long_name": axis,
                "description": "comoving, of the cell's centre",
            },
        )
        coordinate[:] = centres

    def write_labels(dimension: str) -> None:
        labels = LABELS[dimension]
        text = isinstance(labels[0], str)
        shape, kind, own = (len(labels),), "str" if text else "int64", (dimension,)
        names = group.create_array(
            dimension, shape=shape, dtype=kind, dimension_names=own, overwrite=True
        )
        names[:] = np.array(labels, dtype=object if text else np.int64)

    yield from (partial(write_centres, axis) for axis in ("x", "y", "z"))
    # Components are always written: a linear velocity may be added to any store later.
    leads = (FIELDS[name].lead for name in variables)
    for dimension in sorted({"component", *filter(None, leads)}):
        yield partial(write_labels, dimension)


def create_variable(
    group: zarr.Group,
    name: str,
    grid: int,
    shard: int,
    chunk: int,
    *,
    scales: int = 0,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create one empty variable.

    Parameters
    ----------
    name : str
        One of :data:`cosmoflow.numerics.field_table.STORED`.
    grid, shard, chunk : int
        Cells per axis of the grid, of a shard and of a chunk.
    scales : int
        Length of a leading smoothing dimension; 0 for none.
    attributes : mapping, optional
        Attributes beside its unit.
    """
    field = FIELDS[name]
    lead: list[tuple[str, int, int, int]] = []
    if scales:
        lead.append((SMOOTHING, scales, 1, 1))
    if field.lead is not None:
        lead.append((field.lead, field.parts, field.parts, 1))
    dims = [*lead, *((axis, grid, shard, chunk) for axis in ("x", "y", "z"))]
    return group.create_array(
        name,
        shape=tuple(dim[1] for dim in dims),
        shards=tuple(dim[2] for dim in dims),
        chunks=tuple(dim[3] for dim in dims),
        dtype="float32",
        fill_value=float("nan"),
        compressors=ROUNDED_COMPRESSORS if ROUNDED in (attributes or {}) else COMPRESSORS,
        dimension_names=tuple(dim[0] for dim in dims),
        attributes={"units": field.unit, "long_name": field.long_name, **(attributes or {})},
        overwrite=True,
    )


def write_cells(
    array: Any, values: NDArray[np.float32], block: Block | None, lead: tuple[int, ...] = ()
) -> None:
    """Write some cells of a variable.

    Parameters
    ----------
    values : (..., nx, ny, nz) float32
        Values of whole shards.
    block : Block or None
        The cells; None means all.
    lead : tuple of int
        Indices into the first leading dimensions.
    """
    if block is None:
        block = Block((0, 0, 0), array.shape[-3:])
    fixed = [(index, index + 1) for index in lead]
    whole = [(0, length) for length in array.shape[len(lead) : -3]]
    cells = zip(block.origin, block.shape, strict=True)
    ranges = [*fixed, *whole, *((first, first + length) for first, length in cells)]
    write_part(array, ranges, values[(None,) * len(lead)])
