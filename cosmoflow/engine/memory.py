"""How much memory this machine, or the container that we run in, has left."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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
