"""Identity of a snapshot: stamps and hashes of its files, and hashes of sampled rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.files import open_file, stamp_file
from cosmoflow.storage.together import in_threads

if TYPE_CHECKING:
    from cosmoflow.storage.snapshots.source import Part, Reader

PLACES: Final = 16
"""Number of places in each part at which rows are read."""
ROWS: Final = 256
"""Number of rows that are read at each place."""
MOST_PLACES: Final = 1024
"""Maximum number of places in a snapshot. With many parts each has fewer places, down to one in
every part, then in every second part and so on."""
_GULP: Final = 1 << 22


def stamp_files(urls: Sequence[str]) -> list[list[Any]]:
    """Return location, size in bytes and modification time (in a bucket: ETag) of files.

    Raises
    ------
    StorageError
        A file is missing.
    """
    return [list(stamp) for stamp in in_threads(stamp_file, dict.fromkeys(urls))]


def hash_rows(reader: Reader, parts: Sequence[Part]) -> str:
    """Return a hash of sampled rows: positions, velocities and masses as stored.

    Raises
    ------
    DataError
        Two files hold the same particles.

    Notes
    -----
    In every sampled part the first and the last rows are read, and rows spread between them.
    A reader without random access has checksums of all rows in the header instead.
    """
    if not getattr(reader, "random_access", True):
        return ""
    chosen = parts[:: -(-len(parts) // MOST_PLACES)]
    most = max(1, min(PLACES, MOST_PLACES // len(chosen)))
    places = [(part, *rows) for part in chosen for rows in _places(part.count, most)]
    total = hashlib.sha256()
    content: dict[Part, list[bytes]] = {}
    for (part, *_), found in zip(
        places, in_threads(partial(_hash_place, reader), places), strict=True
    ):
        total.update(found)
        content.setdefault(part, []).append(found)
    _refuse_copies(content)
    return total.hexdigest()


def _refuse_copies(content: Mapping[Part, Sequence[bytes]]) -> None:
    """Refuse two files with the same particles: one was copied over the other."""
    seen: dict[tuple[bytes, ...], Part] = {}
    for part, hashes in content.items():
        before = seen.setdefault(tuple(hashes), part)
        if before is not part and part.count > 1:
            raise DataError(
                "two files of the snapshot hold the same particles",
                where=part.label,
                value=f"the rows of {before.label}",
                remedy="one was copied over the other: copy it again",
            )


def _places(count: int, most: int) -> list[tuple[int, int]]:
    """Return ``(start, stop)`` of the rows at each place."""
    if count <= most * ROWS:
        return [(0, count)]
    starts = np.linspace(0, count - ROWS, most, dtype=np.int64).tolist()
    return [(start, start + ROWS) for start in starts]


def _hash_place(reader: Reader, place: tuple[Part, int, int]) -> bytes:
    part, start, stop = place
    found = hashlib.sha256(f"{part.group} {start} {stop}".encode())
    for column in reader.read(part, start, stop, part.columns):
        found.update(f"{column.dtype.str} {column.shape}".encode())
        found.update(np.ascontiguousarray(column).data)
    return found.digest()


def hash_files(urls: Sequence[str]) -> str:
    """Return a hash of all bytes of files, independent of their location."""
    total = hashlib.sha256()
    for found in in_threads(_hash_file, dict.fromkeys(urls)):
        total.update(found)
    return total.hexdigest()


def _hash_file(url: str) -> bytes:
    found = hashlib.sha256()
    with open_file(url) as stream:
        while content := stream.read(_GULP):
            found.update(content)
    return found.digest()
