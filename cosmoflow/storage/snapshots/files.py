"""Finding and opening the files of a snapshot, local or in a bucket."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Final

from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import NotFoundError

from cosmoflow.errors import DataError, StorageError
from cosmoflow.storage.buckets import connect, insisting
from cosmoflow.storage.places import (
    RemotePlace,
    find_place,
    join,
    local_path,
    remote_place,
    split_name,
)
from cosmoflow.storage.urls import exists, storage_errors

_WILDCARDS: Final = re.compile(r"[*?\[]")
# Bytes per request: metadata that are close together cost one request.
_BUFFER: Final = 1 << 20
_MEMBER: Final = re.compile(r"^(?P<stem>.+?)(?P<dot>\.)(?P<index>\d+)(?P<suffix>\.(?:hdf5|h5))?$")
_SUFFIX: Final = re.compile(r"\.(?:hdf5|h5)$")


@dataclass(frozen=True, slots=True, order=True)
class SourceFile:
    """A file: its URL and its size in bytes."""

    url: str
    size: int

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


class _RemoteFile(io.RawIOBase):
    """A file in a bucket, read by ranges."""

    def __init__(self, bucket: Any, path: str) -> None:
        self._bucket, self._path, self._at = bucket, path, 0
        self._size = int(insisting(lambda: bucket.head(path))["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        start = self._at
        content = insisting(lambda: self._bucket.get_range(self._path, start=start, length=wanted))
        buffer[:wanted] = memoryview(content)
        self._at += wanted
        return wanted


def _split(url: str) -> tuple[Any, str]:
    """Return the bucket of a remote URL and the path inside it."""
    place = remote_place(url)
    return connect(place.root.url), place.key


@contextmanager
def open_file(url: str) -> Iterator[IO[bytes]]:
    """Open a local or remote file for reading.

    Raises
    ------
    StorageError
        The file is missing or cannot be reached.
    """
    path = local_path(url)
    try:
        with storage_errors(url):
            stream: IO[bytes]
            if path is not None:
                stream = path.open("rb")
            else:
                stream = io.BufferedReader(_RemoteFile(*_split(url)), _BUFFER)
        with stream:
            yield stream
    except ObstoreError as error:
        raise StorageError(f"cannot read: {str(error).splitlines()[0]}", where=url) from error


def read_exactly(stream: IO[bytes], size: int, where: str) -> bytes:
    """Read ``size`` bytes.

    Raises
    ------
    DataError
        The file ends earlier.
    """
    content = stream.read(size)
    if len(content) < size:
        raise DataError(
            "the file is truncated",
            where=where,
            value=f"{len(content)} bytes",
            limit=f"{size} bytes",
            remedy="copy it again",
        )
    return content


def stat_file(url: str) -> SourceFile | None:
    """Return a file with its size, or None if there is no file."""
    path = local_path(url)
    with storage_errors(url):
        if path is not None:
            return SourceFile(url, path.stat().st_size) if path.is_file() else None
        bucket, inside = _split(url)
        if not inside:
            return None
        try:
            return SourceFile(url, int(insisting(lambda: bucket.head(inside))["size"]))
        except (NotFoundError, FileNotFoundError):
            return None


def stamp_file(url: str) -> tuple[str, int, str]:
    """Return a file's URL, its size, and its modification time in ns or, in a bucket, its ETag.

    Raises
    ------
    StorageError
        There is no such file.
    """
    path = local_path(url)
    with storage_errors(url):
        if path is not None:
            found = path.stat()
            return url, found.st_size, str(found.st_mtime_ns)
        bucket, inside = _split(url)
        item = insisting(lambda: bucket.head(inside))
        return url, int(item["size"]), str(item.get("e_tag") or item["last_modified"])


def list_files(folder: str, *, deep: bool = False) -> list[SourceFile]:
    """Return the visible files in a folder (``deep``: and below), part 2 before part 10."""
    path = local_path(folder)
    with storage_errors(folder):
        if path is not None:
            entries = path.rglob("*") if deep else path.glob("*")
            found = [
                SourceFile(str(item), item.stat().st_size) for item in entries if item.is_file()
            ]
        else:
            bucket, inside = _split(folder)
            root = remote_place(folder).root.url
            prefix = f"{inside}/" if inside else None
            if deep:
                items = insisting(lambda: [one for page in bucket.list(prefix) for one in page])
            else:
                items = insisting(lambda: bucket.list_with_delimiter(prefix))["objects"]
            found = [
                SourceFile(join(root, item["path"]), int(item["size"]))
                for item in items
                # Skip the marker with which the console of an object store creates a folder.
                if item["path"] != inside
            ]
    shown = [file for file in found if not file.name.startswith(".")]
    return sorted(shown, key=lambda file: _natural(file.url))


def _natural(name: str) -> list[Any]:
    """Return a sort key that puts part 2 before part 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def find_files(url: str) -> list[SourceFile]:
    """Return the files of a URL: of a file, a folder, a base name or a glob.

    Raises
    ------
    StorageError
        There are no such files.
    """
    file = stat_file(url)
    found = [file] if file else list_files(url, deep=True) or _members_of(url) or _glob(url)
    if not found:
        raise StorageError("no such file, folder or glob", where=url, remedy="check the path")
    return found


def _glob(url: str) -> list[SourceFile]:
    """Return the files that match a pattern; existing folders at its beginning are literal."""
    fixed, pattern = _split_pattern(url)
    if not _WILDCARDS.search(pattern):
        return []
    path = local_path(fixed)
    if path is not None:
        # Path.glob does not accept absolute patterns.
        wanted = str(Path(glob.escape(str(path)), pattern))
        names = sorted(glob.glob(wanted, recursive=True), key=_natural)  # noqa: PTH207
        paths = [Path(name) for name in names]
        return [SourceFile(str(path), path.stat().st_size) for path in paths if path.is_file()]
    start = f"{remote_place(fixed).url}/"
    return [
        file
        for file in list_files(fixed, deep=True)
        if fnmatchcase(file.url.removeprefix(start), pattern)
    ]


def _split_pattern(url: str) -> tuple[str, str]:
    """Return the folder to search, and the pattern.

    ``run[1]/snap_*`` means files of the folder ``run[1]`` if it exists, and not of ``run1``.
    """
    place = find_place(url)
    parts = place.segments if isinstance(place, RemotePlace) else place.parts
    first = next((index for index, part in enumerate(parts) if _WILDCARDS.search(part)), len(parts))
    while first < len(parts) - 1 and exists(_first_parts(place, first + 1)):
        first += 1
    return _first_parts(place, first), "/".join(parts[first:])


def _first_parts(place: Path | RemotePlace, count: int) -> str:
    """Return the URL of the first parts of a place."""
    if isinstance(place, Path):
        return str(Path(*place.parts[:count]))
    return RemotePlace(place.scheme, place.bucket, "/".join(place.segments[:count])).url


def _members_of(url: str) -> list[SourceFile]:
    """Return the files of a base name such as ``snapdir_004/snap_004``."""
    folder, base = split_name(url)
    path = local_path(folder)
    if path is not None and not path.is_dir():
        return []
    return [file for file in list_files(folder) if base_name(file.name) == base]


def base_name(name: str) -> str:
    """Return a file's name without part number and suffix, common to all parts of a snapshot."""
    member = _MEMBER.match(name)
    return member["stem"] if member else _SUFFIX.sub("", name)


def whole_set(file: SourceFile, parts: int) -> list[SourceFile]:
    """Return all the files of the snapshot that a file belongs to.

    Raises
    ------
    DataError
        A file is missing; the error names it.
    """
    if parts <= 1:
        return [file]
    folder, name = split_name(file.url)
    member = _MEMBER.match(name)
    if member is None:
        raise DataError(
            "the header counts several files, but the name has no part number",
            where=file.url,
            value=f"{parts} files",
            limit="NAME.0.hdf5, NAME.1.hdf5, ...",
        )
    known = {entry.name: entry for entry in list_files(folder)}
    names = [f"{member['stem']}.{index}{member['suffix'] or ''}" for index in range(parts)]
    missing = [name for name in names if name not in known]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            "a part of the snapshot is missing",
            where=f"{join(folder, missing[0])}{more}",
            value=f"{parts - len(missing)} files",
            limit=f"{parts} files, as the header says",
            remedy="copy the missing ones",
        )
    return [known[name] for name in names]
