"""Small files that exactly one of several writers creates."""

from __future__ import annotations

import errno
import secrets
from contextlib import suppress
from pathlib import Path

from obstore.exceptions import AlreadyExistsError, NotFoundError, NotSupportedError

from cosmoflow.errors import StorageError
from cosmoflow.storage.buckets import open_bucket
from cosmoflow.storage.urls import find_bytes, has_file, join, local_path, storage_errors

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_TRIES = 100
"""Attempts to create a folder that other runs may delete at the same time."""


def create_bytes(url: str, name: str, content: bytes) -> bool:
    """Write the small file ``name`` unless it exists; of several writers exactly one succeeds.

    Parameters
    ----------
    url, name : str
        URL of the folder, which is created if it is missing, and name of the file.
    content : bytes
        Content that no other writer would write.

    Returns
    -------
    bool
        Whether this call has written the file.
    """
    path = local_path(url)
    with storage_errors(join(url, name)):
        if path is not None:
            return _link_bytes(path, name, content)
        bucket = open_bucket(url)
        try:
            bucket.put(name, content, mode="create")
        except AlreadyExistsError:
            # A request whose answer was lost is sent again, and then finds its own object.
            return find_bytes(url, name) == content
        except NotSupportedError:
            # The store has no conditional writes: reading back finds most, not all, of the races.
            if has_file(url, name):
                return False
            bucket.put(name, content)
            return find_bytes(url, name) == content
        return True


def _link_bytes(path: Path, name: str, content: bytes) -> bool:
    # The name is linked when the content is complete, so a reader never sees a part.
    partial = path / f".{name}.{secrets.token_hex(4)}.partial"
    while True:
        _make_folder(path)
        try:
            partial.write_bytes(content)
            (path / name).hardlink_to(partial)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Another run has just deleted the empty folder.
            continue
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _create_bytes(path / name, content)
        finally:
            with suppress(OSError):
                partial.unlink()
        return True


def _make_folder(path: Path) -> None:
    """Create a folder and its parents, unless they exist."""
    for left in reversed(range(_TRIES)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError):
            for place in (path, *path.parents):
                if place.is_symlink() and not place.exists():
                    raise StorageError(
                        "a symbolic link leads nowhere",
                        where=str(place),
                        value=f"it points to {place.readlink()}",
                        remedy="make the folder that it points to, or delete the link",
                    ) from None
            # Another run deleted the folder, or a parent, while we were creating it.
            if not left:
                raise
        else:
            return


def _create_bytes(path: Path, content: bytes) -> bool:
    """Create a file where the file system has no hard links."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def remove_file(url: str, name: str) -> None:
    """Delete the small file ``name`` in the folder ``url``, if it exists."""
    path = local_path(url)
    with storage_errors(join(url, name)), suppress(FileNotFoundError, NotFoundError):
        if path is None:
            open_bucket(url).delete(name)
        else:
            (path / name).unlink()
