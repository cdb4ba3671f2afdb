"""Parcels in a bucket: an object each, of which readers on any node take the bytes they need.

The first time that a process reads from a parcel, it reads the end of the object with one request.
It keeps the footer, and the index if there is room. If it has the index, a part takes one request.
Otherwise a part takes two: one for its entry in the index, and one for itself.

A driver says every minute that it lives. What a driver has left that says nothing is deleted by the
next one that uses the place: after an hour, or after a day if the run can be resumed. All times are
the bucket's.
"""

from __future__ import annotations

import queue
import struct
import threading
import time
import uuid
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmoflow.engine.base import Objects
from cosmoflow.engine.exchange.parcels import (
    FOOTER_BYTES,
    DamagedParcelError,
    Entry,
    Footer,
    pack,
)
from cosmoflow.engine.exchange.scratch import KEPT_SECONDS, NAMELESS, SUFFIX
from cosmoflow.engine.graph import Key
from cosmoflow.errors import StorageError

REQUESTS: Final = 16
"""Requests that a task has under way."""
REQUESTED_BYTES: Final = 128 << 20
"""Bytes of parts that a task has requested, unless a single part has more."""
INDEX_BYTES: Final = 32 << 20
"""Bytes of indices that a process keeps."""
END_BYTES: Final = 64 << 10
"""Bytes that are read at the end of a parcel of unknown length; longer indices are not kept."""
SIGN_SECONDS: Final = 60.0
"""Seconds between two signs of life of a driver."""
NAMELESS_SECONDS: Final = 3600.0
"""Seconds without one after which the objects of a run that cannot be resumed are deleted."""
CLEANING_SECONDS: Final = 60.0
"""Longest time that the end of a run waits for its objects to be deleted."""
_ALIVE: Final = "alive"
_ALIGNMENT: Final = 16


class _End(NamedTuple):
    """The footer of a parcel, and the last bytes, as far as they are known."""

    footer: Footer
    content: bytes


class _Ends:
    """The ends of parcels of a run that this process has read."""

    def __init__(self) -> None:
        self.found: dict[Key, _End] = {}
        self._sizes: dict[str, int] = {}
        self._room = INDEX_BYTES

    def keep(self, key: Key, end: _End) -> None:
        """Keep a footer, and the index if there is room for it."""
        size = end.footer.size - end.footer.index_start
        self._sizes[key[0]] = size
        if len(end.content) >= size and size <= min(self._room, END_BYTES):
            self._room -= size
            self.found[key] = _End(end.footer, end.content[-size:])
        else:
            self.found[key] = _End(end.footer, b"")

    def size(self, family: str) -> int:
        """Return how many bytes to read at the end of a parcel of a family."""
        size = self._sizes.get(family, END_BYTES)
        return size if size <= END_BYTES else FOOTER_BYTES


@lru_cache(maxsize=1)
def _ends(run: str) -> _Ends:
    """Return what this process has read in a run; what it has read in another run is dropped."""
    return _Ends()


@dataclass(frozen=True, slots=True)
class BucketScratch:
    """The objects of a run for parcels, with the methods of :class:`.scratch.Scratch`.

    Parameters
    ----------
    run : str
        Name of the run. Runs of one name make the same parcels. Only one of them may be under way,
        which the claim on their output sees to.
    objects : Objects
        The place for all runs.
    """

    run: str
    objects: Objects

    def name(self, key: Key) -> str:
        """Return the name of a task's parcel."""
        name = f"{key[0]}-{key[1]}{SUFFIX}"
        # Stores divide their load by the beginnings of names.
        return f"{self.run}/{zlib.crc32(name.encode()) & 0xFF:02x}/{name}"

    def write(self, key: Key, parts: Sequence[Any], value: Any) -> None:
        """Write the parcel of a task.

        Raises
        ------
        StorageError
        """
        self.objects.put(self.name(key), partial(pack, parts, value))

    def blocks(self, keys: Sequence[Key], part: int) -> Iterator[NDArray[np.uint8] | str | None]:
        """Yield a part of each of some parcels: None if absent, a text if something is wrong.

        Raises
        ------
        StorageError
            The bucket fails.
        """
        pool = ThreadPoolExecutor(REQUESTS)
        waiting: deque[tuple[int, Future[NDArray[np.uint8] | str | None]]] = deque()
        requested = 0
        try:
            for key, entry in zip(keys, pool.map(partial(self._find, part), keys), strict=True):
                size = 0 if isinstance(entry, str) else entry.size
                while waiting and (len(waiting) == REQUESTS or requested + size > REQUESTED_BYTES):
                    requested -= waiting[0][0]
                    yield waiting.popleft()[1].result()
                waiting.append((size, pool.submit(self._read, part, key, entry)))
                requested += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _find(self, part: int, key: Key) -> Entry | str:
        """Return where a part is, or what is wrong with the parcel."""
        try:
            return self._entry(part, key, _ends(self.run).found.get(key) or self._read_end(key))
        except DamagedParcelError as error:
            return str(error)

    def _entry(self, part: int, key: Key, end: _End) -> Entry:
        entry = Entry.parse(self._take(key, end, *end.footer.place(part)))
        if entry.offset + entry.size > end.footer.value:
            raise DamagedParcelError("the index is damaged")
        return entry

    def _take(self, key: Key, end: _End, start: int, stop: int) -> bytes:
        """Return some bytes of a parcel, which may be among the last ones."""
        begin = end.footer.size - len(end.content)
        if start >= begin:
            return end.content[start - begin : stop - begin]
        with _reading():
            return bytes(self.objects.read(self.name(key), start, stop))

    def _read(self, part: int, key: Key, entry: Entry | str) -> NDArray[np.uint8] | str | None:
        """Return a part, or what is wrong with it."""
        if isinstance(entry, str):
            return entry
        with suppress(DamagedParcelError):
            return self._read_part(key, entry)
        # What this process has kept may be the index of a parcel that was lost since.
        try:
            return self._read_part(key, self._entry(part, key, self._read_end(key)))
        except DamagedParcelError as error:
            return str(error)

    def _read_part(self, key: Key, entry: Entry) -> NDArray[np.uint8] | None:
        if not entry.size:
            return None
        with _reading():
            content = self.objects.read(self.name(key), entry.offset, entry.offset + entry.size)
            block = np.frombuffer(content, np.uint8)
        return entry.check(block if block.ctypes.data % _ALIGNMENT == 0 else block.copy())

    def _read_end(self, key: Key, size: int | None = None) -> _End:
        """Read the last bytes of a parcel: by default its footer, with the index if it is short."""
        ends = _ends(self.run)
        with _reading():
            content, whole = self.objects.read_end(
                self.name(key), ends.size(key[0]) if size is None else size
            )
            end = _End(Footer.parse(content), content)
        if end.footer.size != whole:
            raise DamagedParcelError("the footer is damaged")
        ends.keep(key, end)
        return end

    def find(self) -> dict[Key, Any]:
        """Return the key and the value of each parcel that is there."""
        keys = []
        for path, _ in self.objects.list(self.run):
            name, _, number = path.rpartition("/")[2].removesuffix(SUFFIX).rpartition("-")
            if path.endswith(SUFFIX):
                keys.append((name, int(number)))
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = zip(keys, pool.map(self._value, keys), strict=True)
            return {key: value[0] for key, value in found if value}

    def _value(self, key: Key) -> tuple[Any, ...]:
        """Return the value of a parcel, or nothing if it is damaged."""
        with suppress(DamagedParcelError):
            end = self._read_end(key, END_BYTES)
            footer = end.footer
            return (footer.load(self._take(key, end, footer.value, footer.index_start)),)
        return ()

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete some parcels that no task will read."""
        self.objects.delete([self.name(key) for key in keys])

    def hold(self, *, keep: bool) -> HeldObjects:
        """Delete what dead runs have left, and say that this one lives until it is deleted.

        Parameters
        ----------
        keep : bool
            Keep the parcels of a run of this name. They are deleted otherwise.

        Raises
        ------
        StorageError
            The bucket cannot be used.
        """
        return HeldObjects(self, keep)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn the errors of reading a parcel into one."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedParcelError("the object is missing") from error
    except (ValueError, struct.error) as error:
        raise DamagedParcelError(str(error)) from error


class HeldObjects:
    """The objects of a run whose driver is this process.

    A thread of its own says that the driver lives, and deletes parcels, so that the driver does not
    wait for the bucket.

    Parameters
    ----------
    scratch : BucketScratch
        The run.
    keep : bool
        Keep the parcels that are there.
    """

    def __init__(self, scratch: BucketScratch, keep: bool) -> None:
        self._objects, self._run, self._scratch = scratch.objects, scratch.run, scratch
        self._sign, self._token = f"{scratch.run}/{_ALIVE}", uuid.uuid4().hex.encode()
        self._unneeded: queue.SimpleQueue[Sequence[Key]] = queue.SimpleQueue()
        self._ended = False
        self._give_sign()
        self._sweep(keep)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _give_sign(self) -> None:
        self._objects.put(self._sign, lambda: iter([self._token]))

    def _is_replaced(self) -> bool:
        """Return whether a later run of the same name has taken over."""
        try:
            return self._objects.read_end(self._sign, len(self._token))[0] != self._token
        except FileNotFoundError:
            return False

    def _sweep(self, keep: bool) -> None:
        """Delete the objects of runs that have died."""
        found = defaultdict[str, dict[str, datetime]](dict)
        for name, changed in self._objects.list():
            run, slash, _ = name.partition("/")
            if slash:
                found[run][name] = changed
        own = found.pop(self._run)
        now = own.pop(self._sign)
        if not keep:
            self._objects.delete(list(own))
        for run, names in found.items():
            kept = NAMELESS_SECONDS if run.startswith(NAMELESS) else KEPT_SECONDS
            if (now - max(names.values())).total_seconds() > kept:
                self._objects.delete(list(names))

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete some parcels that no task will read, soon."""
        self._unneeded.put(keys)

    def _live(self) -> None:
        given = time.monotonic()
        while not self._ended:
            keys: list[Key] = []
            with suppress(queue.Empty):
                keys += self._unneeded.get(timeout=SIGN_SECONDS)
                while True:
                    keys += self._unneeded.get_nowait()
            # What cannot be deleted now is deleted at the end, or by another run.
            with suppress(StorageError):
                if keys and not self._ended:
                    self._scratch.remove(keys)
                if time.monotonic() - given > SIGN_SECONDS and not self._is_replaced():
                    given = time.monotonic()
                    self._give_sign()
        with suppress(StorageError):
            if not self._is_replaced():
                names = [name for name, _ in self._objects.list(self._run) if name != self._sign]
                self._objects.delete([*names, self._sign])

    def delete(self) -> None:
        """Delete all objects of the run, unless the bucket fails."""
        self._ended = True
        self._unneeded.put([])
        self._thread.join(CLEANING_SECONDS)
