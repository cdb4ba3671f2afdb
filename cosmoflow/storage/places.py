"""Parsing of URLs into local paths and keys of buckets.

This is the only module that parses URLs. The key in ``s3://bucket/key`` is literal: ``#``, ``?``
and ``%`` are ordinary characters, as they are for ``aws s3``. A key that the object store library
cannot use as it is written is refused before anything is read or written. In a ``file://`` URL
percent escapes are decoded, as its standard says.

A local path is literal too. It may contain ``:``; what stands before a ``:`` is a scheme only if
``//`` follows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from cosmoflow.config.folders import expand_home, require_working_directory
from cosmoflow.errors import StorageError

REMOTE_SCHEMES: Final = ("s3", "gs", "az")
_ALIASES: Final = {
    "s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az", "adl": "az",
    "wasb": "az", "wasbs": "az",
}  # fmt: skip
"""Schemes of other programs, and the names that cosmoflow has for them."""

# A scheme of one letter is the drive of a Windows path.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
# Azure has containers $web and $root.
_BUCKET: Final = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|%2[Ff]")


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A place in a bucket: an object, or everything below a prefix.

    Parameters
    ----------
    scheme : {"s3", "gs", "az"}
        Kind of object store.
    bucket : str
        Bucket or container.
    key : str
        The key or prefix, literal, without slashes at its ends. Empty for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def root(self) -> RemotePlace:
        """The whole bucket."""
        return RemotePlace(self.scheme, self.bucket, "")

    @property
    def url(self) -> str:
        """The URL of this place, in the form that cosmoflow writes."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts of the key between slashes."""
        return tuple(self.key.split("/")) if self.key else ()


def find_place(url: str | os.PathLike[str]) -> Path | RemotePlace:
    """Return the local path or the place in a bucket that a URL refers to.

    Parameters
    ----------
    url : str or path
        A local path, ``file://``, ``s3://``, ``gs://`` or ``az://``.

    Returns
    -------
    Path or RemotePlace
        A path has its ``~`` expanded, and is relative where the URL is.

    Raises
    ------
    StorageError
        The scheme is unknown; the key, the bucket or the ``file://`` URL cannot be used as it is
        written; or the path is relative and the working directory no longer exists.
    """
    text = os.fspath(url)
    if not text or "\0" in text:
        raise StorageError(
            "the path is empty" if not text else "a path has no zero bytes",
            value=repr(text),
            remedy="give a path or a URL; the variable that should hold it may not be set",
        )
    found = _SCHEME.match(text)
    if found is None:
        return _local(text)
    scheme, rest = found[1].lower(), found[2]
    if rest.startswith("//"):
        if scheme in REMOTE_SCHEMES:
            return _remote(text, scheme, rest[2:])
        if scheme == "file":
            return _from_file_url(text, rest)
    # A local file that exists takes precedence over a scheme.
    if os.path.lexists(text):
        return _local(text)
    if scheme == "file":
        return _from_file_url(text, rest)
    if scheme in REMOTE_SCHEMES:
        raise StorageError(
            "a URL of an object store has two slashes after its scheme",
            where=text,
            limit=f"{scheme}://BUCKET/KEY",
            remedy=f"write {scheme}://{rest.lstrip('/')}; a local file of that name is ./{text}",
        )
    if rest.startswith("//"):
        ours = _ALIASES.get(scheme)
        raise StorageError(
            f"unknown kind of URL {found[1]!r}",
            where=text,
            limit="a local path, file://, s3://, gs:// or az://",
            remedy=None if ours is None else f"{ours}://BUCKET/KEY is what cosmoflow calls it",
        )
    return _local(text)


def _local(text: str) -> Path:
    path = Path(expand_home(text))
    if not path.is_absolute():
        require_working_directory(text)
    return path


def _remote(url: str, scheme: str, rest: str) -> RemotePlace:
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(
            "this is not the name of a bucket",
            where=url,
            value=repr(bucket),
            limit=f"{scheme}://BUCKET/KEY, a name of letters, digits, dots and dashes",
            remedy="check the URL; the endpoint and the account are set by environment variables "
            "(AWS_ENDPOINT_URL, AZURE_STORAGE_ACCOUNT_NAME), not in the URL",
        )
    found = key.removesuffix("/").split("/") if key else []
    wrong = next((segment for segment in found if segment in ("", ".", "..")), None)
    if wrong is not None:
        said = "an empty one, between two slashes" if wrong == "" else repr(wrong)
        kept = "/".join(segment for segment in found if segment not in ("", "."))
        raise StorageError(
            "object stores take keys literally, and this one has a segment that cannot be used",
            where=url,
            value=said,
            limit='segments that are not empty and not "." or ".."',
            remedy="write the key that is meant, without .."
            if ".." in found
            else f"write {scheme}://{bucket}/{kept} if that is meant",
        )
    try:
        key.encode()
        control = _CONTROL.search(key)
    except UnicodeEncodeError as error:
        control = re.search(re.escape(key[error.start]), key)
    if control is not None:
        raise StorageError(
            "a key of an object store cannot have this character",
            where=repr(url),
            value=repr(control[0]),
            limit="UTF-8 text without control characters",
            remedy="give it another name",
        )
    return RemotePlace(scheme, bucket, "/".join(found))


def _from_file_url(url: str, rest: str) -> Path:
    """Return the path of a ``file:`` URL: percent escapes are decoded, as its standard says."""
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost") or not path.startswith("/"):
        raise StorageError(
            "a file:// URL has three slashes, then an absolute path of this machine",
            where=url,
            value=f"host {host!r}" if host else f"path {path!r}",
            limit="file:///ABSOLUTE/PATH",
            remedy=f"give the plain path, {host + path}" if host + path else "give a plain path",
        )
    if mark := next((mark for mark in "#?" if mark in path), None):
        raise StorageError(
            f"{mark} ends the path of a file:// URL, and nothing may follow it",
            where=url,
            remedy=f"give the plain path, {path}; or write %23 for # and %3F for ?",
        )
    if escape := _BAD_ESCAPE.search(path):
        raise StorageError(
            "this is not the percent escape of a character of a path",
            where=url,
            value=path[escape.start() : escape.start() + 3],
            limit="%25 for %",
            remedy=f"give the plain path, {path}, which has no escapes; or write %25 for each %",
        )
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """Return the path of a local URL, or None when it is remote; raise as :func:`find_place`."""
    place = find_place(url)
    return place if isinstance(place, Path) else None


def remote_place(url: str) -> RemotePlace:
    """Return the place that a remote URL means; raise as :func:`find_place`."""
    place = find_place(url)
    if isinstance(place, Path):
        raise ValueError(f"not remote: {url}")
    return place


def absolute(url: str | os.PathLike[str]) -> str:
    """Return the absolute form of a URL: workers have other working folders.

    An absolute URL is returned unchanged, and two URLs of one place in a bucket become equal. It
    raises as :func:`find_place`.
    """
    place = find_place(url)
    return str(place.absolute()) if isinstance(place, Path) else place.url


def overlaps(first: str, second: str) -> bool:
    """Return whether two URLs are the same place, or one is inside the other."""
    one, other = find_place(first), find_place(second)
    if isinstance(one, Path) and isinstance(other, Path):
        one, other = one.resolve(), other.resolve()
        return one.is_relative_to(other) or other.is_relative_to(one)
    if isinstance(one, Path) or isinstance(other, Path) or one.root != other.root:
        return False
    shared = min(len(one.segments), len(other.segments))
    return one.segments[:shared] == other.segments[:shared]


def join(url: str, name: str) -> str:
    """Return the URL of something inside ``url``."""
    return f"{url.rstrip('/')}/{name}"


def split_name(url: str) -> tuple[str, str]:
    """Return the folder and the name of a place; the name of the root is empty.

    It raises as :func:`find_place`.
    """
    place = find_place(url)
    if isinstance(place, Path):
        return str(place.parent), place.name
    folder, _, name = place.key.rpartition("/")
    return RemotePlace(place.scheme, place.bucket, folder).url, name
