"""Whether freed memory returns to the system at once or is kept for the next use."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX."""
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 << 10, 65536
_NEVER = -1


@cache
def return_freed_buffers() -> None:
    """Return freed buffers to the system at once, if libc can do that.

    By default glibc returns only buffers above a threshold, which it raises to the size of the
    largest freed buffer, up to 32 MB. After reading 200 MB of particles, a worker held 300 MB more
    in pieces of no use to others. A threshold that is set is not raised.
    """
    _tune(_MMAP_THRESHOLD, 1 << 20)


class _Keepers:
    """How many now want this process to keep its freed buffers; the last to go restores libc."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._other = 0

    @property
    def count(self) -> int:
        """How many want it now."""
        return self._count

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                # What is not of the heap, such as the libraries' own memory, is never freed.
                self._other = max(0, _resident())
            self._count += 1
            _tune(_MMAP_MAX, 0)
            _tune(_TRIM_THRESHOLD, _NEVER)

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count and _heap() is not None:
                return
            if not self._count:
                _tune(_MMAP_MAX, _DEFAULT_MMAPS)
                _tune(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        # glibc raises its threshold of 128 KiB no more once the others are set.
        return_freed_buffers()
        # Where libc does not say how much is kept, plans would take it for memory in use.
        _trim()

    def held(self) -> int:
        with self._lock:
            return max(0, min(_freed(), _resident() - self._other)) if self._count else 0


_keepers = _Keepers()


def keep_freed_buffers() -> None:
    """Keep freed buffers in this process until it ends, if libc can do that.

    A network needs the same large buffers in every step. If they are returned and allocated again,
    the kernel clears each page, which took a third of a training step, and far more beside another
    busy process.
    """
    _keepers.enter()


@contextmanager
def keeping_freed_buffers() -> Iterator[None]:
    """Keep freed buffers while the ``with`` block runs, then return them to the system.

    With nested blocks, the outermost returns them. What a block has made and is still in use stays:
    once it is free, :func:`trim` returns it.
    """
    _keepers.enter()
    try:
        yield
    finally:
        _keepers.leave()


def kept_memory() -> int:
    """Return the bytes of freed buffers that this process keeps; rather too few than too many."""
    return _keepers.held()


class _Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``, from 2.33 on."""

    _names: ClassVar = (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )  # fmt: skip
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _names]


def _heap() -> _Mallinfo | None:
    """Return what libc says of its heap, or None."""
    found = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if found is None:
        return None
    found.restype = _Mallinfo
    heap: _Mallinfo = found()
    return heap


def _freed() -> int:
    """Return the bytes of the heap that are free, also those that the system has back already."""
    heap = _heap()
    return 0 if heap is None else heap.fordblks


def _resident() -> int:
    """Return the bytes of this process's own memory, less those of the heap that are in use."""
    heap, process = _heap(), psutil.Process().memory_info()
    used: int = 0 if heap is None else heap.uordblks + heap.hblkhd
    found: int = process.rss - process.shared - used
    return found


def trim() -> None:
    """Return freed buffers to the system, if libc can do that and nothing wants to keep them."""
    if not _keepers.count:
        _trim()


def _trim() -> None:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found(0)


def _tune(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
