"""The columns of a particle store, in cosmoflow's layout or in that of another program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.layout import check_unit, decode, label_orders, packing_of
from cosmoflow.storage.ledger import LEDGER_GROUP
from cosmoflow.storage.piecewise import read_in_pieces
from cosmoflow.storage.transfer import read_part
from cosmoflow.storage.urls import damage, storage_errors

COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class Column:
    """A number, or three, for each particle.

    Parameters
    ----------
    array : zarr.Array
        The stored array.
    axis : int
        Axis of the particles.
    order : tuple of int, optional
        Indices of x, y and z along the other axis; by default they are in this order.
    packing : dict
        Attributes that say how the numbers are decoded.
    """

    array: Any
    axis: int = 0
    order: tuple[int, ...] | None = None
    packing: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of particles."""
        return int(self.array.shape[self.axis])

    @property
    def chunk(self) -> int:
        """Particles of a chunk."""
        return int(self.array.chunks[self.axis])

    @property
    def shard(self) -> int:
        """Particles of a shard, or of a chunk where there are no shards."""
        return int((self.array.shards or self.array.chunks)[self.axis])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the particles ``start`` to ``stop``, shape (m,) or (m, 3), decoded."""
        rows, other = (start, min(stop, self.count)), [(0, 3)] * (self.array.ndim - 1)
        ranges = [rows, *other] if self.axis == 0 else [*other, rows]
        raw = np.empty([last - first for first, last in ranges], self.array.dtype)
        read_part(self.array, ranges, raw)
        values = decode(raw if self.axis == 0 else raw.T, self.packing)
        return values if self.order is None else values[:, list(self.order)]


def open_column(
    group: zarr.Group, name: str, unit: str | None, url: str, *, vector: bool, count: int | None
) -> Column:
    """Open a column of a particle store.

    Parameters
    ----------
    unit : str or None
        Required unit of a column that has one; None allows any.
    vector : bool
        Whether each particle has three numbers.
    count : int or None
        Number of particles, if it is known already.

    Raises
    ------
    DataError
        The column does not exist, or it has the wrong shape, unit or data type.
    """
    where = f"{url}, {name}"
    with damage(where):
        array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise DataError(f"the particle store has no {name!r}", where=url)
    names = tuple(getattr(array.metadata, "dimension_names", None) or (None,) * array.ndim)
    axis = _particle_axis(array.shape, names) if vector else 0
    row = array.shape[:axis] + array.shape[axis + 1 :]
    if row != ((3,) if vector else ()) or (count is not None and array.shape[axis] != count):
        raise DataError(
            f"{name} has the wrong shape",
            where=url,
            value=array.shape,
            limit=("n" if count is None else count, *((3,) if vector else ())),
        )
    packing = packing_of(array, where) if array.dtype.kind in "fiu" else {}
    if array.dtype.kind != "f" and not (packing.keys() & {"scale_factor", "add_offset"}):
        raise DataError(f"{name} is not of floating point", where=url, value=str(array.dtype))
    if unit is not None:
        check_unit(array.attrs.get("units"), unit, where)
    if not np.isnan(array.fill_value) and LEDGER_GROUP not in group:
        _refuse_missing(array, name, where)
    order = _component_order(group, names[1 - axis], url) if vector else None
    return Column(read_in_pieces(array), axis, order, packing)


def _component_order(group: zarr.Group, dimension: str | None, url: str) -> tuple[int, ...] | None:
    """Return the order of x, y and z by the labels of the other dimension, for any name."""
    labels = group.get(dimension) if dimension else None
    if not isinstance(labels, zarr.Array):
        return None
    if dimension != COMPONENT and labels.dtype.kind in "fiu":
        # These labels are only indices.
        return None
    return label_orders({COMPONENT: labels}, url).get(COMPONENT)


def _particle_axis(shape: tuple[int, ...], names: tuple[str | None, ...]) -> int:
    """Return the axis of the particles: by its name, or else by its length."""
    if len(shape) != 2:
        return 0
    if COMPONENT in names:
        return 1 - names.index(COMPONENT)
    return int(shape[0] == 3 and shape[1] != 3)


def _refuse_missing(array: zarr.Array[Any], name: str, where: str) -> None:
    """Refuse a column with missing chunks, which would read as the fill value of the array.

    zarr does not store chunks in which all values equal the fill value. So the chunks of velocities
    that are all 0, or of masses that all equal a fill value other than 0, may be missing.
    """
    with storage_errors(where), damage(where):
        missing = array.nchunks - array.nchunks_initialized
    meant = {"velocity": missing == array.nchunks, "mass": array.fill_value != 0}
    if missing and not meant.get(name, False):
        noun = {"position": "positions", "velocity": "velocities", "mass": "masses"}[name]
        raise DataError(
            f"parts of the {noun} are missing and read as {array.fill_value:g}",
            where=where,
            value=f"{missing} of {array.nchunks} chunks are not stored",
            remedy="write the store again, or copy it again",
        )
