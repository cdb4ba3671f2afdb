"""HDF5 files of the Gadget family: opening, inspecting, and reading rows of datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import h5py
from numpy.typing import NDArray

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.snapshots.facts import FileFacts, TypeFacts, plain
from cosmoflow.storage.snapshots.files import SourceFile, open_file
from cosmoflow.storage.snapshots.source import Part, Raw
from cosmoflow.storage.urls import local_path

POSITION: Final = "Coordinates"
VELOCITY: Final = "Velocities"
MASSES: Final = ("Masses", "DynamicalMasses")
"""Columns of masses; SWIFT's black holes have the second."""

_GROUPS: Final = ("Header", "Parameters", "Units", "Cosmology")
READERS_COMMAND: Final = "pip install 'cosmoflow[readers]'"


@contextmanager
def open_hdf5(url: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises
    ------
    DataError
        It is no HDF5 file, or a damaged one.
    StorageError
        It is missing or cannot be reached.
    """
    with open_file(url) as stream:
        try:
            path = local_path(url)
            # Locks fail on many of the file systems that hold snapshots, and nobody writes here.
            file = h5py.File(stream, "r") if path is None else h5py.File(path, "r", locking=False)
        except OSError as error:
            raise _damaged(url, error) from error
        with file:
            yield file


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        "the file is truncated or damaged",
        where=where,
        value=str(error).splitlines()[0],
        remedy="copy it again",
    )


def inspect_file(file: SourceFile) -> FileFacts:
    """Read the header of a file and which particles it holds, and no particle.

    Raises
    ------
    DataError
        It is no snapshot, or damaged.
    """
    with open_hdf5(file.url) as content:
        try:
            groups = {
                name: {key: plain(value) for key, value in group.attrs.items()}
                for name, group in content.items()
                if name in _GROUPS
            }
            if "Header" not in groups:
                raise DataError(
                    "this HDF5 file is no snapshot: it has no group Header",
                    where=file.url,
                    value=f"{', '.join(content) or 'nothing'}",
                    limit="Header, PartType1, ...",
                )
            found = {
                int(name.removeprefix("PartType")): group
                for name, group in content.items()
                if name.startswith("PartType") and name[8:].isdigit() and POSITION in group
            }
            return FileFacts(
                file,
                groups,
                {kind: _inspect_type(group, file.url) for kind, group in sorted(found.items())},
                _virtual_sources(found),
            )
        except (OSError, RuntimeError, KeyError) as error:
            raise _damaged(file.url, error) from error


def _inspect_type(group: h5py.Group, url: str) -> TypeFacts:
    where = f"{url}, {group.name.strip('/')}"
    if VELOCITY not in group:
        raise DataError("the particles have no velocities", where=where, limit=VELOCITY)
    position, velocity = group[POSITION], group[VELOCITY]
    masses = next((name for name in MASSES if name in group), None)
    rows = position.shape[0]
    for dataset in (position, velocity, *([group[masses]] if masses else [])):
        wide = dataset.shape[1:] == (() if dataset.name.endswith("Masses") else (3,))
        if dataset.shape[0] != rows or not wide:
            raise DataError(
                "a column has the wrong shape",
                where=f"{url}, {dataset.name}", value=dataset.shape, limit=f"{rows} rows",
            )  # fmt: skip
        _check_written(dataset, url)
    return TypeFacts(
        rows,
        masses,
        {key: plain(value) for key, value in position.attrs.items()},
        {key: plain(value) for key, value in velocity.attrs.items()},
    )


def _check_written(dataset: h5py.Dataset, url: str) -> None:
    """Refuse a dataset parts of which were never written: HDF5 would give zeros for them."""
    if dataset.size == 0 or dataset.is_virtual:
        return
    if dataset.chunks is None:
        whole = dataset.id.get_offset() is not None or dataset.id.get_storage_size() > 0
    else:
        shape = zip(dataset.shape, dataset.chunks, strict=True)
        whole = dataset.id.get_num_chunks() == math.prod(-(-n // c) for n, c in shape)
    if not whole:
        raise DataError(
            "parts of a column were never written",
            where=f"{url}, {dataset.name}",
            remedy="the simulation was stopped while it wrote this file; use another snapshot",
        )


def _virtual_sources(groups: Mapping[int, h5py.Group]) -> tuple[str, ...]:
    """Return the files behind virtual datasets: where one is missing, HDF5 would give zeros."""
    names: dict[str, None] = {}
    for group in groups.values():
        if group[POSITION].is_virtual:
            names.update((source.file_name, None) for source in group[POSITION].virtual_sources())
    return tuple(names)


@dataclass(frozen=True, slots=True)
class Hdf5Reader:
    """Reads rows of ``PartTypeN`` groups."""

    def read(self, part: Part, start: int, stop: int) -> Raw:
        """Return the particles ``start`` to ``stop`` of a part, in the file's units."""
        with open_hdf5(part.file) as content:
            group = content[part.group]
            return (
                _rows(group[POSITION], start, stop, part),
                _rows(group[VELOCITY], start, stop, part),
                None if part.masses is None else _rows(group[part.masses], start, stop, part),
            )


def _rows(dataset: h5py.Dataset, start: int, stop: int, part: Part) -> NDArray[Any]:
    _check_filters(dataset, part)
    try:
        result: NDArray[Any] = dataset[start:stop]
    except (OSError, RuntimeError) as error:
        raise _damaged(f"{part.label}, rows {start} to {stop}", error) from error
    return result


def _check_filters(dataset: h5py.Dataset, part: Part) -> None:
    """Load the compression filters that HDF5 itself does not bring.

    Raises
    ------
    ConfigError
        They are not installed.
    """
    filters = dataset.id.get_create_plist()
    used = [filters.get_filter(index) for index in range(filters.get_nfilters())]
    absent = [(code, name) for code, _, _, name in used if not h5py.h5z.filter_avail(code)]
    if not absent:
        return
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 - registers its filters
    for code, name in absent:
        if not h5py.h5z.filter_avail(code):
            raise ConfigError(
                "the snapshot is compressed with a filter that is not installed",
                where=f"{part.label}, {dataset.name.rsplit('/', 1)[-1]}",
                value=f"filter {code} ({name.decode(errors='replace')})",
                remedy=READERS_COMMAND,
            )
