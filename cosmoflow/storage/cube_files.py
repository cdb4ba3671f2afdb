"""Arrays in files of NumPy, HDF5, FITS and netCDF, read in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from cosmoflow.errors import ConfigError, DataError, StorageError
from cosmoflow.storage.layout import PACKING, decode
from cosmoflow.storage.snapshots.hdf5 import check_whole

Index = tuple[slice, ...]

WITHIN: Final = "::"
"""Separator between a file and the name of the array in it."""

_SCALAR_NAMES: Final = (
    "density", "delta", "overdensity", "counts", "rho", "dens", "deltax", "density_contrast",
    "dark_matter_density", "n",
)  # fmt: skip
_VECTOR_NAMES: Final = ("velocity", "velocities", "vel", "v", "momentum", "p")


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a file.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    dtype : str
        Type of the numbers.
    read : callable
        From slices to a part of the array; picklable.
    names : tuple of str
        Names of the axes; empty if the file has none.
    unit : str or None
        Unit of the numbers; None if the file has none.
    coordinates : dict
        Values and unit of the coordinates along named axes.
    others : tuple of str or None
        Other arrays of as many dimensions in the file; None if the user named this one, or if it is
        the only such array and has a usual name.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], NDArray[Any]]
    names: tuple[str, ...] = ()
    unit: str | None = None
    coordinates: dict[str, tuple[NDArray[Any], str | None]] = field(default_factory=dict)
    others: tuple[str, ...] | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the whole array is in this process, so that each worker would need a copy."""
        return not isinstance(self.read, _Part)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn exceptions of the file libraries into errors that name the file."""
    try:
        yield
    except PermissionError as error:
        raise StorageError("cannot read the file", where=where, value=error.strerror) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(
            "the file cannot be read", where=where, value=str(error).partition("\n")[0]
        ) from error


def _choose(
    names: dict[str, tuple[int, ...]], wanted: str, path: str, *, vector: bool
) -> tuple[str, tuple[str, ...] | None]:
    """Return the name of the array that is meant, and :attr:`Stored.others`.

    Parameters
    ----------
    names : dict
        Shapes of the arrays in the file by name.
    wanted : str
        Name that the user gave; empty if none.
    path : str
        The file.
    vector : bool
        Whether the array has three components.
    """
    listing = ", ".join(f"{name} {shape}" for name, shape in names.items()) or "nothing"
    if wanted:
        match = [name for name in names if name.strip("/") == wanted.strip("/")]
    else:
        fitting = [name for name, shape in names.items() if len(shape) == 3 + vector]
        known = _VECTOR_NAMES if vector else _SCALAR_NAMES
        called = [name for name in fitting if name.rsplit("/", 1)[-1].lower() in known]
        match = called if len(fitting) != 1 and called else fitting
    if not match and any(name.strip("/").startswith("PartType") for name in names):
        raise DataError(
            "the file holds particles of a snapshot, not a cube",
            where=path,
            value=listing,
            remedy=f"paint them: cosmoflow paint {path} FIELDS",
        )
    if len(match) != 1:
        raise DataError(
            f"the file has no array {wanted!r}"
            if wanted
            else "it is not clear which array of the file is meant",
            where=path,
            value=listing,
            remedy=f"name one: {path}{WITHIN}NAME",
        )
    if wanted or len(names) == 1 or called == fitting:
        return match[0], None
    return match[0], tuple(f"{name} {names[name]}" for name in fitting if name != match[0])


@dataclass(frozen=True, slots=True)
class _Part:
    """Reads parts of an array; it opens the file for each of them, so that it is picklable."""

    load: Callable[[str, str, Index], NDArray[Any]]
    path: str
    name: str

    def __call__(self, index: Index) -> NDArray[Any]:
        with reading(self.path):
            return self.load(self.path, self.name, index)


def _read_npy(path: str, name: str, index: Index) -> NDArray[Any]:
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[index])


def _open_npy(path: str, name: str, vector: bool) -> tuple[str, Stored]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return "", Stored(array.shape, str(array.dtype), _Part(_read_npy, path, ""))


def _open_npz(path: str, name: str, vector: bool) -> tuple[str, Stored]:
    # A compressed member cannot be read in parts, so all of it is read once.
    with np.load(path, allow_pickle=False) as file:
        shapes = {one: file[one].shape for one in file.files}
        name, others = _choose(shapes, name, path, vector=vector)
        values = file[name]
    return name, Stored(values.shape, str(values.dtype), values.__getitem__, others=others)


def _read_hdf5(path: str, name: str, index: Index) -> NDArray[Any]:
    with h5py.File(path, "r", locking=False) as file:
        array = file[name]
        return decode(array[index], _packing(array.attrs))


def _packing(attributes: Any) -> dict[str, Any]:
    found = {name: np.asarray(attributes[name]).item() for name in PACKING if name in attributes}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()
    }


def _open_hdf5(path: str, name: str, vector: bool) -> tuple[str, Stored]:
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(found: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            shapes[found] = item.shape

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(visit)
        name, others = _choose(shapes, name, path, vector=vector)
        array = file[name]
        check_whole(array, path)
        names: list[str] = []
        coordinates = {}
        for axis in array.dims:
            # netCDF 4 stores a coordinate as the scale of an axis.
            scale = axis[0] if len(axis) else None
            names.append(axis.label or (scale.name.rsplit("/", 1)[-1] if scale is not None else ""))
            # A dimension without a coordinate has an empty scale of this name.
            if scale is not None and "not a netCDF variable" not in str(scale.attrs.get("NAME")):
                values = scale.asstr()[:] if scale.dtype.kind in "OS" else scale[:]
                coordinates[names[-1].lower()] = (np.asarray(values), _text(scale.attrs))
        unit = _text(array.attrs)
        part = _Part(_read_hdf5, path, name)
        named = tuple(names) if any(names) else ()
        return name, Stored(array.shape, str(array.dtype), part, named, unit, coordinates, others)


def _text(attributes: Any) -> str | None:
    """Return the unit in the attributes of an array; None if there is none."""
    for key in ("units", "unit", "Units", "BUNIT"):
        if key in attributes:
            value = attributes[key]
            return value.decode() if isinstance(value, bytes) else str(value)
    return None


def _read_netcdf(path: str, name: str, index: Index) -> NDArray[Any]:
    with _netcdf(path) as dataset:
        return np.array(dataset[name].variable[index].values)


def _netcdf(path: str) -> xr.Dataset:
    return xr.open_dataset(path, engine="scipy", decode_times=False, cache=False)


def _open_netcdf(path: str, name: str, vector: bool) -> tuple[str, Stored]:
    with _netcdf(path) as dataset:
        shapes = {str(one): dataset[one].shape for one in dataset.data_vars}
        name, others = _choose(shapes, name, path, vector=vector)
        array = dataset[name]
        coordinates = {
            str(one).lower(): (np.asarray(array[one].values), array[one].attrs.get("units"))
            for one in array.dims
            if one in array.coords
        }
        part, axes, unit = _Part(_read_netcdf, path, name), array.dims, array.attrs.get("units")
        dims = tuple(map(str, axes))
        return name, Stored(array.shape, str(array.dtype), part, dims, unit, coordinates, others)


def _astropy() -> Any:
    try:
        from astropy.io import fits
    except ImportError:
        raise ConfigError(
            "reading FITS files needs astropy",
            remedy="pip install 'cosmoflow[readers]', or save the cube as .npy",
        ) from None
    return fits


def _read_fits(path: str, name: str, index: Index) -> NDArray[Any]:
    # Scaled integers cannot be memory-mapped; a section is read in parts without a mapping.
    with _astropy().open(path, memmap=False) as file:
        return np.array(file[int(name)].section[index])


def _open_fits(path: str, name: str, vector: bool) -> tuple[str, Stored]:
    with _astropy().open(path, memmap=False) as file:
        shapes = {
            str(number): tuple(unit.shape)
            for number, unit in enumerate(file)
            if unit.is_image and unit.shape
        }
        labels = {unit.name: str(number) for number, unit in enumerate(file)}
        name, others = _choose(shapes, labels.get(name.upper(), name), path, vector=vector)
        part = _Part(_read_fits, path, name)
        sample = part((slice(0, 1),) * len(shapes[name]))
        return name, Stored(
            shapes[name],
            str(sample.dtype),
            part,
            unit=_text(file[int(name)].header),
            others=others,
        )


FORMATS: Final[dict[bytes, Callable[[str, str, bool], tuple[str, Stored]]]] = {
    b"\x93NUMPY": _open_npy,
    b"PK\x03\x04": _open_npz,
    b"\x89HDF\r\n\x1a\n": _open_hdf5,
    b"SIMPLE  ": _open_fits,
    b"CDF": _open_netcdf,
}
