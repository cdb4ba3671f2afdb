"""Virtual datasets of HDF5, read source by source.

HDF5 itself gives the fill value, zero, for what no source holds and for every source that it cannot
open. Here each source is opened by name, so that one that is missing or too short is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.facts import Piece
from cosmoflow.storage.snapshots.files import stat_file

_SAME_FILE: Final = "."
_REMEDY: Final = (
    "give the files that hold the particles themselves, or write the column as a dataset of its own"
)


OpenDataset = Callable[[str, str], Any]
"""From a file's URL and a dataset's name to a context manager that gives the dataset, checked."""


def map_pieces(dataset: h5py.Dataset, url: str) -> list[Piece]:
    """Return where the rows of a virtual dataset are, in order.

    Raises
    ------
    DataError
        Some rows have no source, or the mapping is not one of whole rows.
    """
    where = f"{url}, {dataset.name}"
    folder = url.rpartition("/")[0]
    pieces = []
    for source in dataset.virtual_sources():
        rows = _rows_of(source.vspace, dataset.shape, where)
        if rows[2] != 1:
            raise _unreadable(where, f"every row number {rows[2]} of {source.file_name}")
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
                "no source holds some rows of a virtual dataset: HDF5 would read zeros",
                where=where,
                value=f"rows {end} to {piece.first} have none",
                limit=f"all {dataset.shape[0]} rows",
                remedy=_REMEDY,
            )
        if piece.rows and piece.first < end:
            raise _unreadable(where, f"rows {piece.first} to {end} have several sources")
        end = piece.first + piece.rows
    return pieces


def check_sources(
    pieces: Sequence[Piece], dataset: h5py.Dataset, url: str, open_dataset: OpenDataset
) -> None:
    """Refuse a virtual dataset one of whose sources is missing, damaged, or too short.

    Raises
    ------
    DataError
    """
    for piece in pieces:
        with open_dataset(piece.url, piece.dataset) as source:
            _check_rows(piece, source, dataset, url)


def read_pieces(
    dataset: h5py.Dataset, url: str, start: int, stop: int, open_dataset: OpenDataset
) -> NDArray[Any]:
    """Return rows of a virtual dataset.

    Raises
    ------
    DataError
        A source is missing, damaged or too short.
    """
    result = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)
    for piece in map_pieces(dataset, url):
        low, high = max(start, piece.first), min(stop, piece.first + piece.rows)
        if low >= high:
            continue
        with open_dataset(piece.url, piece.dataset) as source:
            _check_rows(piece, source, dataset, url)
            first = piece.start + (low - piece.first) * piece.step
            last = piece.start + (high - 1 - piece.first) * piece.step
            result[low - start : high - start] = source(first, last + 1, piece.step)
    return result


def _locate(name: str, url: str, folder: str) -> str:
    """Return the URL of a source's file, which may be named relative to the virtual file's."""
    if name == _SAME_FILE:
        return url
    if "%b" in name:
        raise _unreadable(url, f"a pattern of file names, {name}")
    beside = f"{folder}/{name.rsplit('/', 1)[-1]}"
    if name.startswith("/"):
        # As HDF5 does: the files may have been moved together.
        return beside if stat_file(name) is None and stat_file(beside) is not None else name
    return f"{folder}/{name}" if folder else name


def _rows_of(space: Any, shape: tuple[int, ...], where: str) -> tuple[int, int, int]:
    """Return first row, number of rows and step of a selection of whole rows."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return 0, shape[0], 1
    if (
        space.get_select_type() != h5py.h5s.SEL_HYPERSLABS
        or not space.is_regular_hyperslab()
        or space.get_simple_extent_ndims() != len(shape)
    ):
        raise _unreadable(where, "a selection that is no regular block of rows")
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


def _check_rows(piece: Piece, source: Any, dataset: h5py.Dataset, url: str) -> None:
    if source.shape[0] < piece.needed or source.shape[1:] != dataset.shape[1:]:
        raise DataError(
            "a source of a virtual dataset is too short: HDF5 would read zeros",
            where=f"{piece.url}, {piece.dataset}",
            value=f"shape {source.shape}",
            limit=f"at least {piece.needed} rows of shape {dataset.shape[1:]}, "
            f"which {url} takes from it",
            remedy="copy the source again, or the file that points to it",
        )


def _unreadable(where: str, value: str) -> DataError:
    return DataError(
        "a virtual dataset takes its rows from its sources in a way that is not read",
        where=where,
        value=value,
        limit="whole rows, one block or one step per source",
        remedy=_REMEDY,
    )
