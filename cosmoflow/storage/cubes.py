"""Scalars and vectors on cubic grids, in files of other programs or in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from cosmoflow.errors import ConfigError, DataError, StorageError
from cosmoflow.storage.cube_files import FORMATS, WITHIN, Index, Stored, reading
from cosmoflow.storage.layout import AXES, check_centres, order_of
from cosmoflow.storage.urls import local_path
from cosmoflow.units import COMPONENTS

Order = Literal["C", "F"]
"""The slowest axis: x, as in NumPy (C), or z, as in Fortran and IDL (F)."""

IN_MEMORY: Final = "an array in memory"
"""Source of a cube that does not come from a file."""


@dataclass(frozen=True, slots=True)
class Cube:
    """A scalar or a vector on a cubic grid.

    Parameters
    ----------
    where : str
        The file and the array in it, for messages.
    stored : Stored
        The array.
    axes : tuple of int
        Axes of the array that are (component,) x, y and z.
    named : bool
        Whether the file names the axes.
    components : tuple of int, optional
        Indices of x, y and z along the component axis; by default they are in this order.
    """

    where: str
    stored: Stored
    axes: tuple[int, ...]
    named: bool
    components: tuple[int, ...] | None = None

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return self.stored.shape[self.axes[-1]]

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return np.dtype(self.stored.dtype).itemsize

    def read(self, part: Index) -> NDArray[Any]:
        """Return some cells, shape (nx, ny, nz) or (3, nx, ny, nz)."""
        index = [slice(None)] * len(self.axes)
        for axis, one in zip(self.axes[-3:], part, strict=True):
            index[axis] = one
        values = self.stored.read(tuple(index)).transpose(self.axes)
        return values if self.components is None else values[list(self.components)]

    def check_box(self, box_size: float) -> None:
        """Refuse coordinates in the file that are not the centres of the cells.

        Raises
        ------
        DataError
        """
        for axis in AXES:
            if axis in self.stored.coordinates:
                values, unit = self.stored.coordinates[axis]
                where = f"{self.where}, {axis}"
                check_centres(values, unit, axis, self.grid, box_size, where)


def cube_of(stored: Stored, where: str, order: Order | None, *, vector: bool) -> Cube:
    """Return an array as a cube, with its axes identified.

    Parameters
    ----------
    where : str
        The file and the array in it, for messages.
    order : {"C", "F"} or None
        Order of the axes; None means that of the file, or C if the file does not name the axes.
    vector : bool
        Whether the array has three components.

    Raises
    ------
    DataError, ConfigError
        The array is not a cube of real numbers, or an order is given although the file names the
        axes.
    """
    expected = "(3, n, n, n) or (n, n, n, 3)" if vector else "(n, n, n)"
    if _kind(stored.dtype) not in "fiu":
        raise DataError(
            "the cube holds no real numbers",
            where=where,
            value=stored.dtype,
            limit="floating point or integers",
        )
    shape, names = stored.shape, tuple(name.lower() for name in stored.names)
    if len(shape) != 3 + vector:
        raise DataError("the array is not a cube", where=where, value=shape, limit=expected)
    first: tuple[int, ...] = ()
    rest = list(range(len(shape)))
    if vector:
        lead = [axis for axis in (0, 3) if shape[axis] == 3]
        if "component" in names:
            lead = [names.index("component")]
        if len(lead) != 1 or shape[lead[0]] != 3:
            raise DataError("the array is not a vector", where=where, value=shape, limit=expected)
        first = (lead[0],)
        rest.remove(lead[0])
    if len({shape[axis] for axis in rest}) != 1 or shape[rest[0]] < 2:
        raise DataError(
            "the grid is not cubic",
            where=where,
            value=shape,
            limit=expected,
            remedy="boxes are periodic cubes: cut or resample the grid",
        )
    labels, _ = stored.coordinates.get("component", (np.array(COMPONENTS), None))
    components = order_of(labels, "component", where) if vector else None
    if {names[axis] for axis in rest if names} == set(AXES):
        if order is not None:
            raise ConfigError(
                "the file says which axis is which",
                where="--order",
                value=order,
                limit=", ".join(names),
                remedy="leave --order out",
            )
        return Cube(where, stored, (*first, *map(names.index, AXES)), True, components)
    ordered = rest[::-1] if order == "F" else rest
    return Cube(where, stored, (*first, *ordered), False, components)


def _kind(dtype: str) -> str:
    """Return NumPy's letter for a type; "V", that of records, if NumPy does not know its name."""
    try:
        return np.dtype(dtype).kind
    except TypeError:
        return "V"


def open_cube(place: str, order: Order | None, *, vector: bool) -> Cube:
    """Open a cube in a file.

    Parameters
    ----------
    place : str
        Path of a local file, followed by ``::NAME`` if the file holds several arrays.
    order, vector
        See :func:`cube_of`.

    Raises
    ------
    StorageError, DataError, ConfigError
        The file cannot be read, or does not hold such a cube.
    """
    url, _, name = place.partition(WITHIN)
    path = local_path(url)
    if path is None:
        raise ConfigError("a cube is read from a local file", where=url, remedy="copy it here")
    if path.is_dir():
        raise DataError(
            "this is a folder, not a file with a cube",
            where=url,
            remedy=f"name a file in it; particles are painted (cosmoflow paint {url} FIELDS), and "
            "a store of fields needs no import",
        )
    if not path.is_file():
        raise StorageError("no such file", where=url, remedy="check the path")
    with reading(url), path.open("rb") as stream:
        start = stream.read(8)
    for magic, opening in FORMATS.items():
        if start.startswith(magic):
            with reading(url):
                name, stored = opening(str(path), name, vector)
            return cube_of(stored, f"{url}{WITHIN}{name}" if name else url, order, vector=vector)
    raise DataError(
        "cosmoflow does not import files of this format",
        where=url,
        limit="NumPy (.npy, .npz), HDF5, FITS, netCDF",
        remedy="save it as .npy: numpy.save('cube.npy', array)",
    )


def store_array(values: ArrayLike, where: str) -> tuple[NDArray[Any], Stored]:
    """Return an array in memory, with its axes, unit and coordinates if it is an xarray array.

    Raises
    ------
    DataError
        The value is not an array, or is partly masked.
    """
    given: Any = values
    if isinstance(given, xr.Dataset):
        raise DataError(
            "this is a dataset, not one of its variables",
            where=where,
            value=", ".join(map(str, given.data_vars)),
            remedy="give dataset[NAME]",
        )
    if np.ma.is_masked(given):
        raise DataError(
            "some of the values are masked",
            where=where,
            value=f"{np.ma.getmaskarray(given).sum()} cells",
            remedy="every cell of a box must have a value: fill them with numpy.ma.filled",
        )
    if hasattr(given, "detach"):
        # NumPy does not accept torch tensors that require a gradient or are on a GPU.
        given = given.detach().cpu()
    array = np.asarray(given)
    stored = Stored(array.shape, str(array.dtype), array.__getitem__)
    if isinstance(given, xr.DataArray):
        labelled = {name: given[name] for name in given.dims if name in given.coords}
        stored = replace(
            stored,
            names=tuple(map(str, given.dims)),
            unit=given.attrs.get("units"),
            coordinates={
                str(name).lower(): (np.asarray(one.values), one.attrs.get("units"))
                for name, one in labelled.items()
            },
        )
    return array, stored


def order_array(values: ArrayLike, where: str, box_size: float) -> NDArray[Any]:
    """Return a scalar in memory, with named axes sorted to x, y, z.

    Raises
    ------
    DataError
    """
    array, stored = store_array(values, where)
    if not stored.names or array.ndim != 3:
        return array
    cube = cube_of(stored, where, None, vector=False)
    cube.check_box(box_size)
    return cube.read((slice(None),) * 3)


def digest_array(values: NDArray[Any], names: Sequence[str] = ()) -> str:
    """Return the digest of an array in memory and of the names of its axes."""
    described = " ".join([f"{values.shape} {values.dtype}", *names]).encode()
    found = hashlib.sha256(described)
    found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()[:16]


def digest_of(place: str) -> str:
    """Return a digest of the content of a file and of the name of the array in it."""
    url, _, name = place.partition(WITHIN)
    with reading(url), Path(local_path(url) or url).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
    found.update(name.encode())
    return found.hexdigest()[:16]
