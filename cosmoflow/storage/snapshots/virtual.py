"""Mapping of HDF5's virtual datasets to their sources.

HDF5 itself returns the fill value, zero, for rows without a source and for sources that it cannot
open. Here each source is opened by name, so that a missing or short source is an error.
"""

from __future__ import annotations

from typing import Any, Final

import h5py

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.facts import Piece
from cosmoflow.storage.snapshots.files import stat_file

_SAME_FILE: Final = "."
_REMEDY: Final = (
    "give the files that hold the particles themselves, or write the column as a plain dataset"
)


def map_pieces(dataset: h5py.Dataset, url: str) -> list[Piece]:
    """Return the pieces of a virtual dataset, in order.

    Raises
    ------
    DataError
        Some rows have no source, or the mapping does not consist of whole rows.
    """
    where = f"{url}, {dataset.name}"
    folder = url.rpartition("/")[0]
    pieces = []
    for source in dataset.virtual_sources():
        rows = _rows_of(source.vspace, dataset.shape, where)
        if rows[2] != 1:
            raise _unreadable(where, f"a step of {rows[2]} rows for {source.file_name}")
        if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
            start, step = 0, 1
        else:
            shape = (*source.src_space.get_simple_extent_dims()[:1], *dataset.shape[1:])
            start, count, step = _rows_of(source.src_space, shape, where)
            if count != rows[1]:
                raise _unreadable(where, f"{count} rows of {source.file_name} for {rows[1]}")
        pieces.append(
            Piece(
                _locate(source.file_name, url, folder),
                source.dset_name,
                rows[0],
                rows[1],
                start,
                step,
            )
        )
    pieces.sort(key=lambda piece: piece.first)
    end = 0
    for piece in [*pieces, Piece(url, "", dataset.shape[0], 0)]:
        if piece.first > end:
            raise DataError(
                "some rows of a virtual dataset have no source: HDF5 would read zeros",
                where=where,
                value=f"rows {end} to {piece.first} have no source",
                limit=f"all {dataset.shape[0]} rows",
                remedy=_REMEDY,
            )
        if piece.rows and piece.first < end:
            raise _unreadable(where, f"rows {piece.first} to {end} have several sources")
        end = piece.first + piece.rows
    return pieces


def _locate(name: str, url: str, folder: str) -> str:
    """Return the URL of a source's file; its name may be relative to the virtual file's folder."""
    if name == _SAME_FILE:
        return url
    if "%b" in name:
        raise _unreadable(url, f"a pattern of file names, {name}")
    beside = f"{folder}/{name.rsplit('/', 1)[-1]}"
    if name.startswith("/"):
        # As in HDF5: the files may have been moved together.
        return beside if stat_file(name) is None and stat_file(beside) is not None else name
    return f"{folder}/{name}" if folder else name


def _rows_of(space: Any, shape: tuple[int, ...], where: str) -> tuple[int, int, int]:
    """Return the first row, number of rows and step of a selection of whole rows."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return 0, shape[0], 1
    if (
        space.get_select_type() != h5py.h5s.SEL_HYPERSLABS
        or not space.is_regular_hyperslab()
        or space.get_simple_extent_ndims() != len(shape)
    ):
        raise _unreadable(where, "a selection that is not a regular block of rows")
    start, stride, count, block = space.get_regular_hyperslab()
    for axis in range(1, len(shape)):
        width = block[axis] if count[axis] == 1 else count[axis] * block[axis]
        gaps = count[axis] > 1 and stride[axis] != block[axis]
        if start[axis] != 0 or width != shape[axis] or gaps:
            raise _unreadable(where, f"not all of the {shape[axis]} numbers of a row")
    if count[0] == 1 or stride[0] == block[0]:
        return start[0], count[0] * block[0], 1
    if block[0] != 1:
        raise _unreadable(where, f"blocks of {block[0]} rows")
    return start[0], count[0], stride[0]


def check_source(piece: Piece, source: h5py.Dataset, dataset: h5py.Dataset, url: str) -> None:
    """Refuse a source that is too short for its piece of a virtual dataset.

    Raises
    ------
    DataError
    """
    if source.shape[0] < piece.needed or source.shape[1:] != dataset.shape[1:]:
        raise DataError(
            "a source of a virtual dataset is too short: HDF5 would read zeros",
            where=f"{piece.url}, {piece.dataset}",
            value=f"shape {source.shape}",
            limit=f"at least {piece.needed} rows of shape {dataset.shape[1:]}, "
            f"which {url} reads from it",
            remedy="copy the source again, or the file that points to it",
        )


def _unreadable(where: str, value: str) -> DataError:
    return DataError(
        "the mapping of a virtual dataset to its sources is not supported",
        where=where,
        value=value,
        limit="whole rows, one block or one step per source",
        remedy=_REMEDY,
    )
