"""Memory that this machine, or the container that we run in, has left, and giving it back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX."""
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 << 10, 65536
_ALL = (1 << 31) - 1


def available_memory() -> int:
    """Return the bytes that this process can still have: the machine's, or its container's.

    What the kernel would give back under pressure counts as available.
    """
    free = _meminfo("MemAvailable")
    for limit, used in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (
            _CGROUP / "memory" / "memory.limit_in_bytes",
            _CGROUP / "memory" / "memory.usage_in_bytes",
        ),
    ):
        # No limit reads "max", or a number beyond any machine.
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free = min(free, int(text) - int(used.read_text()) + _page_cache(limit.parent))
    return max(free, 0)


@cache
def return_freed_buffers() -> None:
    """Have buffers that this process frees go back to the system at once, where libc can do that.

    glibc raises the size from which on it does so to that of the largest buffer freed, up to 32 MB,
    and keeps what is smaller: after reading 200 MB of particles a worker held 300 MB more, in
    pieces that suited nothing else. A size that is set stays.
    """
    _tune(_MMAP_THRESHOLD, 1 << 20)


def keep_freed_buffers() -> None:
    """Have buffers that this process frees stay with it, where libc can do that.

    A network needs the same large buffers step after step. Handing them back and asking for them
    again has the kernel clear each page anew, which cost a third of a training step and far more
    beside another busy process.
    """
    _tune(_MMAP_MAX, 0)
    _tune(_TRIM_THRESHOLD, _ALL)


@contextmanager
def keeping_freed_buffers() -> Iterator[None]:
    """:func:`keep_freed_buffers` for a while, then hand all of them back."""
    keep_freed_buffers()
    try:
        yield
    finally:
        _tune(_MMAP_MAX, _DEFAULT_MMAPS)
        _tune(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _tune(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/meminfo has no {key}")


def _page_cache(folder: Path) -> int:
    """Return the part of a container's memory that only caches files."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
