"""HDF5 files of the Gadget family: opening, inspecting, and reading rows of datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.snapshots.catalogues import check_no_catalogue
from cosmoflow.storage.snapshots.facts import POSITION, VELOCITY, FileFacts, Piece, TypeFacts, plain
from cosmoflow.storage.snapshots.files import SourceFile, open_file, stat_file
from cosmoflow.storage.snapshots.source import Part
from cosmoflow.storage.snapshots.virtual import check_source, map_pieces
from cosmoflow.storage.urls import local_path

MASSES: Final = ("Masses", "DynamicalMasses")
"""Names of the column of masses; SWIFT's black holes use the second."""

_GROUPS: Final = ("Header", "Parameters", "Units", "Cosmology")
_DEEPEST: Final = 8
"""Maximum nesting of virtual datasets."""
READERS_COMMAND: Final = "pip install 'cosmoflow[readers]'"


@contextmanager
def open_hdf5(url: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, even if it is already open in this process.

    Raises
    ------
    DataError
        The file is not HDF5, is damaged, or is open for writing.
    StorageError
        The file is missing or cannot be reached.
    """
    with open_file(url) as stream:
        path = local_path(url)
        try:
            file = h5py.File(stream, "r") if path is None else _open_local(str(path))
        except OSError as error:
            if _is_busy(error):
                raise _busy(url, path) from error
            raise _damaged(url, error) from error
        with file:
            intent = file.id.get_intent()
            # Open for writing in this process: data not yet flushed are not on disk.
            if intent & h5py.h5f.ACC_RDWR and not intent & h5py.h5f.ACC_SWMR_WRITE:
                raise _busy(url, path)
            yield file


def _open_local(path: str) -> h5py.File:
    """Open a file with the locking of the caller's own handle to it, as HDF5 requires."""
    # Locks fail on many file systems that hold snapshots, and this module only reads.
    ways: list[dict[str, Any]] = [{"locking": False}, {}, {"locking": True}]
    for way in [*ways, {"locking": "best-effort"}]:
        try:
            return h5py.File(path, "r", **way)
        except OSError as error:
            refusal = error
            if _is_busy(error):
                with suppress(OSError):
                    return h5py.File(path, "r", swmr=True, **way)
            if "locking" not in str(error):
                raise
    raise refusal


def _is_busy(error: OSError) -> bool:
    return isinstance(error, BlockingIOError) or "already open for" in str(error)


def _busy(url: str, path: Path | None) -> DataError:
    return DataError(
        "the file is open for writing",
        where=url,
        limit="a file that no program is writing",
        remedy="close it in the program that writes it (file.close() in h5py), or wait; "
        f"if its writer was killed: h5clear -s {path}",
    )


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        "the file is truncated or damaged",
        where=where,
        value=str(error).splitlines()[0],
        remedy="copy it again",
    )


def _follow(group: h5py.Group, name: str, url: str) -> Any:
    """Return a member of a group, following links; refuse links that lead nowhere."""
    link = group.get(name, getlink=True)
    place = f"{url}, {group.name.rstrip('/')}/{name}"
    if isinstance(link, h5py.ExternalLink) and local_path(url) is None:
        raise DataError(
            "the file links to another file; links between files are not followed in a bucket",
            where=place,
            value=f"{link.filename}, {link.path}",
            remedy="copy both to a local folder",
        )
    try:
        return group[name]
    except (KeyError, OSError) as error:
        if isinstance(link, h5py.HardLink):
            raise _damaged(place, error) from error
        target = getattr(link, "filename", None)
        if target is not None and "locking" in str(error):
            raise _busy(target, Path(target)) from error
        raise DataError(
            "a link in the file leads nowhere",
            where=place,
            value=f"{link.path} in {target}" if target else link.path,
            limit="a link to an existing file and object",
            remedy="copy the file that it points to as well, and keep their relative paths",
        ) from error


def inspect_file(file: SourceFile) -> FileFacts:
    """Read the header and the particle counts of a file, but no particles.

    Raises
    ------
    DataError
        The file is not a snapshot, is damaged, or points to missing data.
    """
    with open_hdf5(file.url) as content:
        try:
            return _inspect(file, content)
        except (OSError, RuntimeError, KeyError) as error:
            raise _damaged(file.url, error) from error


def _inspect(file: SourceFile, content: h5py.File) -> FileFacts:
    names = [name for name in content if name in _GROUPS or _kind(name) is not None]
    members = {name: _follow(content, name, file.url) for name in names}
    groups = {
        name: {key: plain(value) for key, value in members[name].attrs.items()}
        for name in names
        if name in _GROUPS
    }
    check_no_catalogue(file.url, list(content), groups.get("Header", {}))
    if "Header" not in groups:
        raise DataError(
            "this HDF5 file is not a snapshot: it has no group Header",
            where=file.url,
            value=f"{', '.join(content) or 'nothing'}",
            limit="Header, PartType1, ...",
        )
    found = {
        kind: members[name]
        for name in names
        if (kind := _kind(name)) is not None and POSITION in members[name]
    }
    types, columns = {}, list[h5py.Dataset]()
    for kind, group in sorted(found.items()):
        types[kind], used = _inspect_type(group, file.url)
        columns += used
    virtual = {one.name: _mapped(one, file.url) for one in columns if one.is_virtual}
    others = {piece.url for pieces in virtual.values() for piece in pieces}
    others |= {one.file.filename for one in columns}
    others -= {file.url, content.filename}
    sources = tuple(one for one in map(stat_file, sorted(others)) if one is not None)
    only = len(virtual) == len(columns) and bool(columns)
    return FileFacts(file, groups, types, virtual, only, sources)


def _kind(name: str) -> int | None:
    """Return the particle type in a group's name, or None."""
    digits = name.removeprefix("PartType")
    return int(digits) if name.startswith("PartType") and digits.isdigit() else None


def _inspect_type(group: h5py.Group, url: str) -> tuple[TypeFacts, list[h5py.Dataset]]:
    """Return the facts of a group of particles, and its columns that are read."""
    where = f"{url}, {group.name.strip('/')}"
    if VELOCITY not in group:
        raise DataError("the particles have no velocities", where=where, limit=VELOCITY)
    position, velocity = _follow(group, POSITION, url), _follow(group, VELOCITY, url)
    masses = next((name for name in MASSES if name in group), None)
    columns = [position, velocity, *([_follow(group, masses, url)] if masses else [])]
    rows = position.shape[0]
    for dataset, width in zip(columns, ((3,), (3,), ()), strict=False):
        if dataset.shape[0] != rows or dataset.shape[1:] != width:
            raise DataError(
                "a column has the wrong shape",
                where=f"{url}, {dataset.name}",
                value=dataset.shape,
                limit=f"{rows} rows",
            )
        _check_written(dataset, url)
        _check_packing(dataset, url)
    facts = TypeFacts(
        rows,
        masses,
        {key: plain(value) for key, value in position.attrs.items()},
        {key: plain(value) for key, value in velocity.attrs.items()},
    )
    return facts, columns


def check_whole(dataset: h5py.Dataset, url: str, depth: int = 0) -> None:
    """Refuse a dataset with missing parts, which HDF5 would read as zeros.

    Raises
    ------
    DataError
    """
    if dataset.is_virtual:
        _mapped(dataset, url, depth)
    else:
        _check_written(dataset, url)


def _check_packing(dataset: h5py.Dataset, url: str) -> None:
    """Refuse scaled (packed) numbers: no code of this family writes them."""
    scale, offset = dataset.attrs.get("scale_factor", 1.0), dataset.attrs.get("add_offset", 0.0)
    if scale != 1.0 or offset != 0.0:
        raise DataError(
            "a column is packed, which is not supported",
            where=f"{url}, {dataset.name}",
            value=f"scale_factor {scale}, add_offset {offset}",
            remedy="write the unpacked numbers as floating point, without these attributes",
        )


def _check_written(dataset: h5py.Dataset, url: str) -> None:
    """Refuse a dataset with unwritten parts, which HDF5 would read as zeros."""
    if dataset.size == 0 or dataset.is_virtual:
        return
    if dataset.external:
        raise DataError(
            "a column is stored in raw files outside the HDF5 file, which are not read",
            where=f"{url}, {dataset.name}",
            value=", ".join(name for name, *_ in dataset.external),
            remedy="write the column into the file itself",
        )
    if dataset.chunks is None:
        whole = dataset.id.get_offset() is not None or dataset.id.get_storage_size() > 0
    else:
        shape = zip(dataset.shape, dataset.chunks, strict=True)
        whole = dataset.id.get_num_chunks() == math.prod(-(-n // c) for n, c in shape)
    if not whole:
        raise DataError(
            "parts of a column were never written",
            where=f"{url}, {dataset.name}",
            remedy="the program was stopped while it wrote this file; use another one",
        )


def _mapped(dataset: h5py.Dataset, url: str, depth: int = 0) -> list[Piece]:
    """Return the pieces of a virtual dataset after checking every source."""
    pieces = map_pieces(dataset, url)
    for piece in pieces:
        with _open_source(piece, url, depth + 1) as source:
            check_source(piece, source, dataset, url)
    return pieces


@contextmanager
def _open_source(piece: Piece, pointer: str, depth: int) -> Iterator[h5py.Dataset]:
    """Open a source of a virtual dataset in the file ``pointer``; refuse one with missing parts."""
    url, name = piece.url, piece.dataset
    if depth > _DEEPEST:
        raise DataError("virtual datasets point to one another", where=f"{url}, {name}")
    if stat_file(url) is None:
        raise DataError(
            "a part of the snapshot is missing",
            where=url,
            limit=f"a file that {pointer} points to",
            remedy="copy the missing ones; HDF5 would read zeros for them",
        )
    with open_hdf5(url) as content:
        if name not in content:
            raise DataError(
                "a part of the snapshot lacks a column: HDF5 would read zeros",
                where=f"{url}, {name}",
                limit=f"a dataset that {pointer} points to",
                remedy="copy it again, or the file that points to it",
            )
        dataset = content[name]
        check_whole(dataset, url, depth)
        yield dataset


@dataclass(frozen=True, slots=True)
class Hdf5Reader:
    """Reads rows of ``PartTypeN`` groups."""

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return columns of the particles ``start`` to ``stop`` of a part, in the file's units."""
        names = {"position": POSITION, "velocity": VELOCITY, "mass": part.masses or ""}
        with open_hdf5(part.file) as content:
            group = _follow(content, part.group, part.file)
            return [
                _rows(_follow(group, names[name], part.file), start, stop, part.file)
                for name in columns
            ]


def _rows(
    dataset: h5py.Dataset, start: int, stop: int, url: str, step: int = 1, depth: int = 0
) -> NDArray[Any]:
    if dataset.is_virtual:
        return _read_pieces(dataset, start, stop, url, depth)[::step]
    _check_filters(dataset, url)
    try:
        result: NDArray[Any] = dataset[start:stop:step]
    except (OSError, RuntimeError) as error:
        raise _damaged(f"{url}, {dataset.name}, rows {start} to {stop}", error) from error
    return result


def _read_pieces(
    dataset: h5py.Dataset, start: int, stop: int, url: str, depth: int
) -> NDArray[Any]:
    """Return rows of a virtual dataset, read source by source."""
    result = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)
    for piece in map_pieces(dataset, url):
        low, high = max(start, piece.first), min(stop, piece.first + piece.rows)
        if low >= high:
            continue
        first = piece.start + (low - piece.first) * piece.step
        last = piece.start + (high - 1 - piece.first) * piece.step
        with _open_source(piece, url, depth + 1) as source:
            check_source(piece, source, dataset, url)
            result[low - start : high - start] = _rows(
                source, first, last + 1, piece.url, piece.step, depth + 1
            )
    return result


def _check_filters(dataset: h5py.Dataset, url: str) -> None:
    """Load compression filters that HDF5 itself lacks; refuse those that are not installed."""
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
                where=f"{url}, {dataset.name.strip('/')}",
                value=f"filter {code} ({name.decode(errors='replace')})",
                remedy=READERS_COMMAND,
            )
