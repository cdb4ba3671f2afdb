"""Layout of the variables in a fields store: order of dimensions and labels, packing.

All stores that cosmoflow writes have the same layout. Stores of other programs may have dimensions
and components in any order, and values packed into integers. What cannot be read correctly is
refused.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.field_table import LABELS, STORED
from cosmoflow.storage.urls import damage, storage_errors
from cosmoflow.storage.variables import SMOOTHING
from cosmoflow.units import DIVERGENCE, LENGTH, VELOCITY

if TYPE_CHECKING:
    import xarray as xr

AXES: Final = ("x", "y", "z")

PACKING: Final = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
"""Attributes of the CF conventions that change the meaning of stored numbers."""

_NAN: Final = base64.standard_b64encode(struct.pack("<d", math.nan)).decode()
"""The ``_FillValue`` that xarray writes for floating point: NaN, which needs no decoding."""

_TOLERANCE: Final = 1e-3
"""Allowed distance of a coordinate from the cell's centre, in cells: float32 in large grids."""

_LARGEST_SHARD: Final = 128
"""Cells per axis of the shards that are added to a store whose own chunks are larger."""

_SPELLINGS: Final = {
    LENGTH: {"mpc/h", "mpch-1", "h-1mpc", "mpch^-1", "cmpc/h", "cmpch-1", "h-1cmpc"},
    VELOCITY: {"km/s", "kms-1", "s-1km", "km/sec"},
    "1": {"1", "dimensionless", "none", "unitless", "-"},
    DIVERGENCE: {
        "km/s/(mpc/h)", "km/s/mpc/h", "kms-1mpc-1h", "hkm/s/mpc", "hkms-1mpc-1", "km/s*h/mpc",
    },
}  # fmt: skip


def same_unit(found: object, expected: str) -> bool:
    """Return whether a unit is a spelling of the expected one; an empty unit counts as one."""
    spellings = ("", "none", expected, *_SPELLINGS[expected])
    return _squeeze(str(found)) in map(_squeeze, spellings)


def _squeeze(unit: str) -> str:
    return re.sub(r"[ ^*{}$\\_]", "", unit.lower())


def check_unit(found: object, expected: str, where: str) -> None:
    """Refuse a unit other than the expected one.

    Raises
    ------
    DataError
    """
    if found is not None and not same_unit(found, expected):
        raise DataError(
            "the unit is another than cosmoflow's",
            where=where,
            value=found,
            limit=expected,
            remedy=f"convert the values to {expected} and say so in the attribute `units`",
        )


def dimensions_of(name: str) -> tuple[str, ...]:
    """Return the dimensions of a variable in cosmoflow's order."""
    lead = STORED[name].lead
    scales = (SMOOTHING,) if name == "linear_velocity" else ()
    return (*scales, *(() if lead is None else (lead,)), *AXES)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one variable is stored.

    Parameters
    ----------
    stored : tuple of str
        Dimensions in the stored order.
    wanted : tuple of str
        Dimensions in cosmoflow's order.
    orders : mapping
        For each dimension whose labels are in another order than cosmoflow's: the stored index of
        each of cosmoflow's labels.
    packing : mapping
        Attributes that say how the numbers are decoded.
    """

    stored: tuple[str, ...]
    wanted: tuple[str, ...]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    packing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the variable is stored in cosmoflow's own layout."""
        reordered = any(name in self.orders for name in self.stored)
        return self.stored == self.wanted and not reordered and not self.packing

    def cells(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the parts of a shape, or of chunk sizes, that belong to x, y and z."""
        return tuple(int(sizes[self.stored.index(axis)]) for axis in AXES)

    def parts(self, shape: Sequence[int], fixed: int) -> tuple[int, ...]:
        """Return the lengths of the leading dimensions after the first ``fixed``."""
        return tuple(int(shape[self.stored.index(name)]) for name in self.wanted[fixed:-3])

    def read(
        self, array: Any, lead: tuple[int, ...], part: tuple[slice, ...]
    ) -> NDArray[np.float32]:
        """Read some cells.

        Parameters
        ----------
        array : zarr.Array
            The variable.
        lead : tuple of int
            Indices into the first leading dimensions to fix, in cosmoflow's order.
        part : (slice, slice, slice)
            Cells of x, y and z.

        Returns
        -------
        (..., nx, ny, nz) float32
            In cosmoflow's order.
        """
        chosen: dict[str, Any] = dict(zip(AXES, part, strict=True))
        for name, index in zip(self.wanted, lead, strict=False):
            chosen[name] = self.orders[name][index] if name in self.orders else index
        raw = array[tuple(chosen.get(name, slice(None)) for name in self.stored)]
        left = self.wanted[len(lead) :]
        kept = [name for name in self.stored if name in left]
        values = decode(np.asarray(raw), self.packing).transpose([kept.index(n) for n in left])
        for axis, name in enumerate(left):
            if name in self.orders:
                values = values.take(self.orders[name], axis)
        return np.ascontiguousarray(values, np.float32)


def decode(raw: NDArray[Any], packing: Mapping[str, Any]) -> NDArray[Any]:
    """Return numbers decoded by the CF conventions; missing values become NaN."""
    if not packing:
        return raw
    dims = [f"axis{index}" for index in range(raw.ndim)]
    # Imported here: xarray loads pandas, and most stores need no decoding.
    import xarray as xr

    packed = xr.Variable(dims, raw, dict(packing))
    decoded: NDArray[Any] = xr.conventions.decode_cf_variable("packed", packed).to_numpy()
    return decoded


def packing_of(array: zarr.Array[Any], where: str) -> dict[str, Any]:
    """Return the attributes of an array that say how its numbers are decoded.

    Raises
    ------
    DataError
        The array does not hold real numbers.
    """
    if array.dtype.kind not in "fiu":
        raise DataError(
            "the variable holds no real numbers",
            where=where,
            value=str(array.dtype),
            limit="floating point or integers",
        )
    packing = {name: array.attrs[name] for name in PACKING if name in array.attrs}
    fill = packing.get("_FillValue")
    # xarray writes floating-point fill values of zarr format 3 as base64.
    if isinstance(fill, str) and fill != "NaN" and array.dtype.kind == "f":
        fill = packing["_FillValue"] = struct.unpack("<d", base64.standard_b64decode(fill))[0]
    if fill in ("NaN", _NAN) or (isinstance(fill, float) and math.isnan(fill)):
        del packing["_FillValue"]
    return packing


def label_orders(arrays: Mapping[str, zarr.Array[Any]], url: str) -> dict[str, tuple[int, ...]]:
    """Return the stored index of each label, for dimensions with another order than cosmoflow's.

    Raises
    ------
    DataError
        A label is unknown.
    """
    orders = {}
    for dimension in LABELS:
        if dimension in arrays:
            with storage_errors(url), damage(f"{url}, {dimension}"):
                labels = np.asarray(arrays[dimension][:])
            order = order_of(labels, dimension, url)
            if order is not None:
                orders[dimension] = order
    return orders


def find_layout(
    array: zarr.Array[Any],
    name: str,
    url: str,
    orders: Mapping[str, tuple[int, ...]],
) -> Layout:
    """Find out how one variable is stored, given the orders of labels in its store.

    Raises
    ------
    DataError
        A dimension, unit or data type is unknown.
    """
    where = f"{url}, {name}"
    wanted = dimensions_of(name)
    stored = tuple(str(one) for one in getattr(array.metadata, "dimension_names", None) or ())
    if len(stored) != array.ndim or sorted(stored) != sorted(wanted):
        raise DataError(
            "the dimensions are not those of this field",
            where=where,
            value=f"({', '.join(stored) or 'no names'}) of shape {array.shape}",
            limit=f"({', '.join(wanted)}), in any order",
            remedy="rename them with xarray's Dataset.rename and write the store again",
        )
    check_unit(array.attrs.get("units"), STORED[name].unit, where)
    lead = STORED[name].lead
    length = array.shape[stored.index(lead)] if lead else 0
    if lead and length != len(LABELS[lead]):
        raise DataError(
            f"the field has the wrong number of values along {lead}",
            where=where,
            value=length,
            limit=len(LABELS[lead]),
        )
    own = {name: order for name, order in orders.items() if name in stored}
    return Layout(stored, wanted, own, packing_of(array, where))


def order_of(values: NDArray[Any], dimension: str, where: str) -> tuple[int, ...] | None:
    """Return the stored index of each of cosmoflow's labels; None if they are in its order.

    Raises
    ------
    DataError
        A label is unknown.
    """
    found = [str(label) for label in values.ravel().tolist()]
    labels = [str(label) for label in LABELS[dimension]]
    if found == labels:
        return None
    if sorted(found) != sorted(labels):
        raise DataError(
            f"cosmoflow does not know the labels along {dimension}",
            where=f"{where}, {dimension}",
            value=", ".join(found),
            limit=f"{', '.join(labels)}, in any order",
            remedy=f"label them with xarray's Dataset.assign_coords({dimension}="
            f"{list(LABELS[dimension])}) in the order of the values, and write the store again",
        )
    return tuple(found.index(label) for label in labels)


def check_coordinates(
    arrays: Mapping[str, zarr.Array[Any]], grid: int, box_size: float, url: str
) -> None:
    """Refuse coordinates that are not the ascending cell centres in Mpc/h.

    Parameters
    ----------
    arrays : mapping of str to zarr.Array
        All arrays of the store, with or without coordinates.
    grid : int
        Cells per axis.
    box_size : float
        Side of the box, Mpc/h.

    Raises
    ------
    DataError
    """
    for axis in AXES:
        if axis in arrays:
            array, where = arrays[axis], f"{url}, {axis}"
            with storage_errors(url), damage(where):
                values = decode(np.asarray(array[:]), packing_of(array, where))
            check_centres(values, array.attrs.get("units"), axis, grid, box_size, where)


def check_centres(
    values: NDArray[Any], unit: object, axis: str, cells: int, box_size: float, where: str
) -> None:
    """Refuse values that are not the ascending cell centres in Mpc/h.

    Raises
    ------
    DataError
    """
    check_unit(unit, LENGTH, where)
    found = values.astype(np.float64)
    side = box_size / cells
    centres = (np.arange(cells) + 0.5) * side

    def near(values: NDArray[np.floating[Any]]) -> bool:
        return bool((abs(found - values) <= _TOLERANCE * side).all())

    if found.shape == centres.shape and near(centres):
        return
    remedy = f"assign_coords({axis}=(numpy.arange({cells}) + 0.5) * {box_size!r} / {cells})"
    what = "the coordinate is not that of the cells' centres"
    if found.shape == centres.shape:
        if near(centres[::-1]):
            what = "the coordinate descends"
            remedy = f"sort it with xarray: dataset.sortby({axis!r}), and write the store again"
        elif near(centres - 0.5 * side) or near(centres + 0.5 * side):
            what = "the coordinate is that of the cells' edges"
            remedy = (
                f"if the cells lie between edges, {remedy}; values at grid points are half a cell "
                "away from where cosmoflow takes them to be"
            )
        elif near(centres * 1e3):
            what = "the coordinate looks like kpc/h"
    raise DataError(
        what,
        where=where,
        value=_range(found),
        limit=f"(i + 1/2) L / n: {_range(centres)}, for a box_size of {box_size:g} {LENGTH}",
        remedy=remedy,
    )


def _range(values: NDArray[np.floating[Any]]) -> str:
    if values.size < 3:
        return str(values.tolist())
    first, second, last = values.flat[0], values.flat[1], values.flat[-1]
    return f"{values.size} from {first:g}, {second:g} to {last:g}"


def canonical(dataset: xr.Dataset, names: Sequence[str], box_size: float) -> xr.Dataset:
    """Return a dataset with dimensions and labels in cosmoflow's order.

    Missing coordinates are added.
    """
    for axis in AXES:
        if axis not in dataset.coords:
            centres = (np.arange(dataset.sizes[axis]) + 0.5) * (box_size / dataset.sizes[axis])
            dataset = dataset.assign_coords({axis: (axis, centres, {"units": LENGTH})})
    for dimension, labels in LABELS.items():
        if dimension in dataset.dims and dimension not in dataset.coords:
            dataset = dataset.assign_coords({dimension: list(labels)})
        elif dimension in dataset.coords:
            found = [str(label) for label in dataset[dimension].values.tolist()]
            if found != (expected := [str(label) for label in labels]):
                dataset = dataset.isel({dimension: [found.index(label) for label in expected]})
    ordered = {name: dataset[name].transpose(*dimensions_of(name)) for name in names}
    return dataset.assign(ordered)


def shard_cells(layout: Layout, array: zarr.Array[Any]) -> tuple[int, int]:
    """Return the cells per axis of a shard and of a chunk.

    Variables that are added to the store of another program, whose chunks may have any shape, get
    cubic shards.
    """
    if array.shards is not None and layout.plain:
        return int(array.shards[-1]), int(array.chunks[-1])
    chunks = layout.cells(array.shards or array.chunks)
    if len(set(chunks)) == 1 and chunks[0] <= _LARGEST_SHARD:
        return chunks[0], chunks[0]
    shard = min(max(chunks), *layout.cells(array.shape), _LARGEST_SHARD)
    return shard, next((size for size in range(64, 15, -1) if shard % size == 0), shard)
