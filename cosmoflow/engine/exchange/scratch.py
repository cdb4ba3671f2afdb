"""The folders of parcels: one for each run on each node, held by a lock while the run lives.

The lock is the kernel's: it ends with the process that holds it, however that dies. A folder
without a holder is what a killed run has left. If that run has a name, the same run, resumed, uses
the parcels. Otherwise the next run on the node deletes the folder: at once if it has the same name,
and else when the folder is a day old, or a minute if it has no name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from numpy import uint8
from numpy.typing import NDArray

from cosmoflow.engine.exchange.parcels import (
    DamagedParcelError,
    find_part,
    read_block,
    read_value,
    write_parcel,
)
from cosmoflow.engine.graph import Key
from cosmoflow.errors import ConfigError, StorageError
from cosmoflow.units import format_bytes

_LOCK: Final = "lock"
SUFFIX: Final = ".parts"
NAMELESS: Final = "once-"
KEPT_SECONDS: Final = 86400.0
"""Age at which any run deletes what a killed run with a name has left."""
NAMELESS_SECONDS: Final = 60.0
"""The same for runs without a name, which cannot be resumed."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The folder of a run for parcels, on whichever node it is used.

    Parameters
    ----------
    run : str
        Name of the run. Runs of one name make the same parcels; see :func:`nameless`.
    root : str, optional
        Folder for all runs, on every node. By default that which the node's environment names in
        ``COSMOFLOW_SCRATCH``, or else its folder for temporary files.
    node : str
        Name of the node, if nodes may share the folder of all runs.
    """

    run: str
    root: str | None = None
    node: str = ""

    @property
    def folder(self) -> Path:
        """The folder on this node."""
        return self._root / (f"{self.run}.{self.node}" if self.node else self.run)

    @property
    def _root(self) -> Path:
        root = self.root or os.environ.get("COSMOFLOW_SCRATCH") or tempfile.gettempdir()
        if "://" in root:
            raise ConfigError(
                "only the command itself can be given a bucket for what tasks hand on",
                where="COSMOFLOW_SCRATCH on a node" if self.root is None else "engine.scratch",
                value=root,
                limit="a folder",
                remedy=f"--set engine.scratch={root}, or COSMOFLOW_SCRATCH where the command runs",
            )
        return Path(root) / f"cosmoflow-scratch-{os.getuid()}"

    def path(self, key: Key) -> Path:
        """Return the file of a task's parcel."""
        name, number = key
        return self.folder / f"{name}-{number}{SUFFIX}"

    def write(self, key: Key, parts: Sequence[Any], value: Any) -> None:
        """Write the parcel of a task.

        Raises
        ------
        StorageError
            The disk is full, or fails.
        """
        try:
            # On a node without a server nothing has made the folder yet.
            self._make()
            write_parcel(self.path(key), parts, value)
        except OSError as error:
            raise self._explain(error) from error

    def _make(self) -> None:
        """Make the folder, which only this user may read and write: parts are unpickled."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = self._root.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise StorageError(
                "others can write to the folder for what tasks hand on",
                where=str(self._root),
                value=f"owner {found.st_uid}, mode {found.st_mode & 0o777:o}",
                limit=f"owner {os.getuid()}, mode 700",
                remedy="delete it, or name another folder: --set engine.scratch=FOLDER",
            )
        self.folder.mkdir(exist_ok=True, mode=0o700)

    def _explain(self, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return StorageError(
            "the disk for what tasks hand on is full" if full
            else f"what tasks hand on cannot be written: {error.strerror}",
            where=str(self.folder),
            value=f"{format_bytes(self.free)} free" if full else None,
            remedy="free space there, or name another folder: --set engine.scratch=FOLDER; then "
            "run again with --resume",
        )  # fmt: skip

    @property
    def free(self) -> int:
        """Free bytes on the disk of the folder."""
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def read(self, key: Key, part: int) -> NDArray[uint8] | None:
        """Return the bytes of a part, checked; None if it is absent.

        Raises
        ------
        DamagedParcelError
        """
        return read_block(self.path(key), part)

    def blocks(self, keys: Sequence[Key], part: int) -> Iterator[NDArray[uint8] | str | None]:
        """Yield a part of each of some parcels: None if absent, a text if something is wrong."""
        for key in keys:
            try:
                yield self.read(key, part)
            except DamagedParcelError as error:
                yield str(error)

    def size(self, key: Key, part: int) -> int:
        """Return the bytes of a part; 0 if it is absent.

        Raises
        ------
        DamagedParcelError
        """
        return find_part(self.path(key), part).size

    def find(self) -> dict[Key, Any]:
        """Return the key and the value of each parcel that is there."""
        found: dict[Key, Any] = {}
        for path in self.folder.glob(f"*{SUFFIX}"):
            name, _, number = path.name.removesuffix(SUFFIX).rpartition("-")
            with suppress(DamagedParcelError):
                found[name, int(number)] = read_value(path)
        return found

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete some parcels that no task will read."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def hold(self, *, keep: bool, patience: float = 0.0) -> Held:
        """Make the folder, and hold it until it is deleted or this process ends.

        Parameters
        ----------
        keep : bool
            Keep the parcels that are there. They are deleted otherwise.
        patience : float
            Seconds to wait for another process to let go of the folder.

        Raises
        ------
        StorageError
            The folder cannot be made, or another process holds it.
        """
        try:
            self._sweep(keep)
            self._make()
            lock = (self.folder / _LOCK).open("w")
            _take(lock, patience)
        except BlockingIOError as error:
            raise StorageError(
                "another run exchanges parts in the same folder",
                where=str(self.folder),
                remedy="let it finish, or stop it",
            ) from error
        except OSError as error:
            raise self._explain(error) from error

        return Held(self, lock)

    def _sweep(self, keep: bool) -> None:
        """Delete the folders of runs that have died."""
        for folder in self._root.glob("*/"):
            if folder == self.folder:
                if not keep:
                    _remove_if_free(folder)
                for partial in folder.glob("*.partial"):
                    partial.unlink(missing_ok=True)
                continue
            kept = NAMELESS_SECONDS if folder.name.startswith(NAMELESS) else KEPT_SECONDS
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > kept:
                    _remove_if_free(folder)


def _take(lock: IO[str], patience: float) -> None:
    """Lock a file, or raise BlockingIOError."""
    begun = time.monotonic()
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - begun > patience:
                raise
        time.sleep(0.1)


def nameless() -> str:
    """Return a name for a run that cannot be resumed."""
    return f"{NAMELESS}{uuid.uuid4().hex}"


def _remove_if_free(folder: Path) -> None:
    """Delete a folder unless a process holds it, or it belongs to another user."""
    with suppress(OSError), (folder / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


class Held:
    """A folder that this process holds.

    Parameters
    ----------
    scratch : Scratch
        The folder.
    lock : file
        Its lock.
    """

    def __init__(self, scratch: Scratch, lock: IO[str]) -> None:
        self._scratch, self._lock = scratch, lock

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete some parcels that no task will read."""
        self._scratch.remove(keys)

    def delete(self) -> None:
        """Delete the folder, and those of lost nodes that were on this machine."""
        shutil.rmtree(self._scratch.folder, ignore_errors=True)
        self.release()
        for folder in self._scratch.folder.parent.glob(f"{self._scratch.run}.*/"):
            _remove_if_free(folder)

    def release(self) -> None:
        """Let go of the folder, as the end of this process would."""
        self._lock.close()


def require_room(scratch: Scratch, size: int) -> None:
    """Make sure that the disk of this node has room for parcels.

    Raises
    ------
    ConfigError
        It has less than ``size`` bytes.
    """
    if scratch.free < size:
        raise ConfigError(
            "what the tasks hand to one another does not fit on the disk",
            where=str(scratch.folder.parent),
            value=f"{format_bytes(scratch.free)} free",
            limit=f"{format_bytes(size)}, the projected bytes",
            remedy="free space there, or name another folder: --set engine.scratch=FOLDER",
        )
