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
from urllib.parse import urlsplit

from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import NotFoundError

from cosmoflow.errors import DataError, StorageError
from cosmoflow.storage.buckets import connect, insisting
from cosmoflow.storage.urls import local_path, storage_errors

_WILDCARDS: Final = re.compile(r"[*?\[]")
# One request brings this much; metadata that lies close together costs one request.
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

    def tell(self) -> int:
        return self._at

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
    parts = urlsplit(url)
    return connect(f"{parts.scheme}://{parts.netloc}"), parts.path.strip("/")


@contextmanager
def open_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading at any place.

    Raises
    ------
    StorageError
        It is missing or cannot be reached.
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
    """Read so many bytes.

    Raises
    ------
    DataError
        The file ends before.
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
    """Return a file's size, or None where there is no file."""
    path = local_path(url)
    with storage_errors(url):
        if path is not None:
            return SourceFile(url, path.stat().st_size) if path.is_file() else None
        bucket, inside = _split(url)
        try:
            return SourceFile(url, int(insisting(lambda: bucket.head(inside))["size"]))
        except (NotFoundError, FileNotFoundError):
            return None


def list_files(folder: str, *, deep: bool = False) -> list[SourceFile]:
    """Return the files in a folder (``deep``: and below), part 2 before part 10; no hidden ones."""
    path = local_path(folder)
    with storage_errors(folder):
        if path is not None:
            entries = path.rglob("*") if deep else path.glob("*")
            found = [
                SourceFile(str(item), item.stat().st_size) for item in entries if item.is_file()
            ]
        else:
            bucket, inside = _split(folder)
            parts = urlsplit(folder)
            prefix = f"{inside}/" if inside else None
            if deep:
                items = insisting(lambda: [one for page in bucket.list(prefix) for one in page])
            else:
                items = insisting(lambda: bucket.list_with_delimiter(prefix))["objects"]
            found = [
                SourceFile(f"{parts.scheme}://{parts.netloc}/{item['path']}", int(item["size"]))
                for item in items
            ]
    shown = [file for file in found if not file.name.startswith(".")]
    return sorted(shown, key=lambda file: _natural(file.url))


def _natural(name: str) -> list[Any]:
    """Sort key by which part 2 comes before part 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def find_files(url: str) -> list[SourceFile]:
    """Return the files that a URL means: itself, those of a folder or glob, or of a base name.

    Raises
    ------
    StorageError
        There are none.
    """
    if _WILDCARDS.search(url):
        found = _glob(url)
    else:
        file = stat_file(url)
        found = [file] if file else list_files(url, deep=True) or _members_of(url)
    if not found:
        raise StorageError("no such file, folder or glob", where=url, remedy="check the path")
    return found


def _glob(url: str) -> list[SourceFile]:
    path = local_path(url)
    if path is not None:
        # Path.glob takes no absolute pattern.
        names = sorted(glob.glob(str(path), recursive=True), key=_natural)  # noqa: PTH207
        found = [SourceFile(name, Path(name).stat().st_size) for name in names]
        return [file for file in found if Path(file.url).is_file()]
    fixed = url[: _WILDCARDS.search(url).start()].rsplit("/", 1)[0]  # type: ignore[union-attr]
    return [file for file in list_files(fixed, deep=True) if fnmatchcase(file.url, url)]


def _members_of(url: str) -> list[SourceFile]:
    """Return the files of a base name such as ``snapdir_004/snap_004``."""
    folder, _, base = url.rpartition("/")
    path = local_path(folder or ".")
    if path is not None and not path.is_dir():
        return []
    return [file for file in list_files(folder or ".") if base_name(file.name) == base]


def base_name(name: str) -> str:
    """Return a file's name without part number and suffix: one for all parts of a snapshot."""
    member = _MEMBER.match(name)
    return member["stem"] if member else _SUFFIX.sub("", name)


def whole_set(file: SourceFile, parts: int) -> list[SourceFile]:
    """Return all the files of the snapshot that a file belongs to.

    Raises
    ------
    DataError
        One is missing; the error names it.
    """
    if parts <= 1:
        return [file]
    folder, slash, name = file.url.rpartition("/")
    member = _MEMBER.match(name)
    if member is None:
        raise DataError(
            "the header tells of several files, but the name has no part number",
            where=file.url,
            value=f"{parts} files",
            limit="NAME.0.hdf5, NAME.1.hdf5, ...",
        )
    known = {entry.name: entry for entry in list_files(folder or ".")}
    names = [f"{member['stem']}.{index}{member['suffix'] or ''}" for index in range(parts)]
    missing = [name for name in names if name not in known]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            "a part of the snapshot is missing",
            where=f"{folder}{slash}{missing[0]}{more}",
            value=f"{parts - len(missing)} files",
            limit=f"{parts} files, as the header says",
            remedy="copy the missing ones",
        )
    return [known[name] for name in names]
