"""Memory that this machine, or the container that we run in, has left, and giving it back."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD."""


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
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)


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
