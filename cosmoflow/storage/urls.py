"""Access to stores and small files by URL, on local disks and in object stores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import zarr
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import NotFoundError
from zarr.errors import GroupNotFoundError

from cosmoflow.errors import CosmoflowError, DataError, StorageError
from cosmoflow.storage.bucket_store import BucketStore
from cosmoflow.storage.buckets import connect, explain, first_line, open_bucket
from cosmoflow.storage.places import absolute, join, local_path, overlaps

__all__ = [
    "CLAIMS",
    "absolute",
    "count_bytes",
    "damage",
    "exists",
    "find_bytes",
    "has_file",
    "holds_only_partial_files",
    "join",
    "list_names",
    "local_path",
    "open_group",
    "open_group_for_writing",
    "overlaps",
    "prune",
    "read_bytes",
    "remove",
    "storage_errors",
    "write_bytes",
    "zarr_store",
]

CLAIMS = ".claims"
"""Name of the folder of claims (``storage.claims``); it is not part of the stored data."""


def zarr_store(url: str, *, read_only: bool) -> Any:
    """Return the zarr store behind a URL."""
    path = local_path(url)
    if path is not None:
        return zarr.storage.LocalStore(path, read_only=read_only)
    return BucketStore(connect(url), read_only=read_only)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn exceptions of the storage libraries into errors that name the store."""
    try:
        yield
    except CosmoflowError:
        raise
    except (FileNotFoundError, ObstoreError) as error:
        raise explain(error, url) from error
    except OSError as error:
        raise StorageError(
            f"storage failed: {first_line(error)}",
            where=url,
            remedy="check space and permissions; then run again with --resume",
        ) from error


@contextmanager
def damage(where: str) -> Iterator[None]:
    """Turn the exceptions of zarr for undecodable metadata or chunks into a DataError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            "the store is damaged",
            where=where,
            value=first_line(error),
            remedy="write it again, or copy it again",
        ) from error


def open_group(url: str) -> zarr.Group:
    """Open an existing zarr group for reading.

    Raises
    ------
    StorageError
        There is nothing at the URL, or it cannot be reached.
    DataError
        The URL is not a zarr group.
    """
    path = local_path(url)
    if path is not None and not path.exists():
        raise StorageError("no such store", where=url, remedy="check the path")
    with storage_errors(url), damage(url):
        try:
            store = zarr_store(url, read_only=True)
            # xarray writes consolidated metadata, which are not updated when an array is added.
            return _open_group(store, "r")
        except GroupNotFoundError:
            if path is None:
                raise
            raise DataError(
                "this is not a zarr group",
                where=url,
                limit="a store that cosmoflow or xarray wrote",
                remedy="a density cube is imported first (cosmoflow import), a snapshot painted "
                "(cosmoflow paint)",
            ) from None


def open_group_for_writing(url: str) -> zarr.Group:
    """Open an existing zarr group for writing into its arrays and attributes."""
    with storage_errors(url):
        store = zarr_store(url, read_only=False)
        return _open_group(store, "r+")


def _open_group(store: Any, mode: Literal["r", "r+"]) -> zarr.Group:
    try:
        # Without a format, zarr also asks for the three files of format 2.
        return zarr.open_group(store, mode=mode, use_consolidated=False, zarr_format=3)
    except GroupNotFoundError:
        return zarr.open_group(store, mode=mode, use_consolidated=False)


def exists(url: str) -> bool:
    """Return whether anything is stored under a URL; claims do not count."""
    path = local_path(url)
    if path is not None:
        with storage_errors(url):
            if not path.is_dir():
                return path.exists()
            # Another run may be deleting the folder.
            with suppress(FileNotFoundError):
                return any(entry.name != CLAIMS for entry in path.iterdir())
            return False
    with storage_errors(url):
        pages = open_bucket(url).list(chunk_size=1)
        return any(_is_content(item["path"]) for page in pages for item in page)


def _is_content(path: str) -> bool:
    """Return whether an object below a place is neither part of a claim nor a folder marker.

    The consoles of object stores create a folder ``run/`` as an object with that key. obstore lists
    it as "" and, asked to delete it, would delete the object ``run`` instead.
    """
    return path != "" and not path.startswith(f"{CLAIMS}/")


def holds_only_partial_files(url: str) -> bool:
    """Return whether a local folder holds only partial files that a killed writer left."""
    path = local_path(url)
    if path is None:
        return False
    # Unlike Path.rglob, os.walk does not fail when another run deletes the folder meanwhile.
    found = ((Path(folder).relative_to(path), files) for folder, _, files in os.walk(path))
    return all(
        CLAIMS in folder.parts[:1] or all(name.endswith(".partial") for name in files)
        for folder, files in found
    )


def remove(url: str) -> None:
    """Delete everything stored under a URL except for the claims on it.

    The files directly inside, which say what the store is, are deleted last, so that a half deleted
    store still counts as ours.
    """
    path = local_path(url)
    with storage_errors(url):
        if path is None:
            bucket = open_bucket(url)
            marks: list[str] = []
            for page in bucket.list():
                paths = [item["path"] for item in page if _is_content(item["path"])]
                marks += [name for name in paths if "/" not in name]
                bucket.delete([name for name in paths if "/" in name])
            bucket.delete(marks)
        elif path.is_dir():
            for entry in sorted(path.iterdir(), key=lambda entry: not entry.is_dir()):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                elif entry.name != CLAIMS:
                    shutil.rmtree(entry)
            prune(url)
        else:
            path.unlink(missing_ok=True)


def prune(url: str) -> None:
    """Delete a local folder if it is empty; object stores have no folders."""
    path = local_path(url)
    if path is not None:
        with suppress(OSError):
            path.rmdir()


def find_bytes(url: str, name: str) -> bytes | None:
    """Read the small file ``name`` in the folder ``url``; None if it does not exist.

    Raises
    ------
    StorageError
        The file cannot be read.
    """
    path = local_path(url)
    try:
        if path is not None:
            return (path / name).read_bytes()
        return bytes(open_bucket(url).get(name).bytes())
    except (FileNotFoundError, NotADirectoryError, NotFoundError):
        return None
    except ObstoreError as error:
        raise explain(error, join(url, name)) from error
    except OSError as error:
        raise StorageError(f"cannot read: {first_line(error)}", where=join(url, name)) from error


def read_bytes(url: str, name: str) -> bytes:
    """Read the small file ``name`` in the folder ``url``.

    Raises
    ------
    StorageError
        The file is missing or cannot be read.
    """
    content = find_bytes(url, name)
    if content is None:
        raise StorageError("no such file", where=join(url, name))
    return content


def has_file(url: str, name: str) -> bool:
    """Return whether the folder ``url`` holds a file ``name``."""
    path = local_path(url)
    if path is not None:
        return (path / name).is_file()
    try:
        open_bucket(url).head(name)
    except (FileNotFoundError, NotFoundError):
        return False
    except ObstoreError as error:
        raise explain(error, join(url, name)) from error
    return True


def write_bytes(url: str, name: str, content: bytes) -> None:
    """Write the small file ``name`` in the folder ``url``; a reader sees the whole file or none."""
    path = local_path(url)
    with storage_errors(join(url, name)):
        if path is None:
            open_bucket(url).put(name, content)
            return
        path.mkdir(parents=True, exist_ok=True)
        partial = path / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(path / name)


def list_names(url: str) -> list[str]:
    """Return the names directly inside a folder, sorted.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    path = local_path(url)
    with storage_errors(url):
        if path is not None:
            return sorted(entry.name for entry in path.iterdir())
        listing = open_bucket(url).list_with_delimiter()
        inside = [*listing["common_prefixes"], *(item["path"] for item in listing["objects"])]
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in inside if name)


def count_bytes(url: str) -> int:
    """Return the bytes of all files or objects below a URL."""
    path = local_path(url)
    with storage_errors(url):
        if path is None:
            return sum(int(item["size"]) for page in open_bucket(url).list() for item in page)
        total = 0
        for folder, _, files in os.walk(path):
            for name in files:
                # A run that writes to the folder renames its files.
                with suppress(FileNotFoundError):
                    total += Path(folder, name).stat().st_size
        return total
