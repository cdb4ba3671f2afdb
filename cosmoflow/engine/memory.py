"""The memory that is available to this process."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

from cosmoflow.engine.buffers import kept_memory

_CGROUP = Path("/sys/fs/cgroup")

FREE_SHARE: Final = 0.5
"""Share of the free memory that a process takes unless ``--memory`` says how much it may."""


def available_memory() -> int:
    """Return the bytes that this process can still have: the machine's, or its container's.

    Memory that the kernel would free under pressure counts as available, and so do freed buffers
    that this process keeps.
    """
    kept = kept_memory()
    free: int = psutil.virtual_memory().available + kept
    for limit, used in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (
            _CGROUP / "memory" / "memory.limit_in_bytes",
            _CGROUP / "memory" / "memory.usage_in_bytes",
        ),
    ):
        # Without a limit, the file holds "max", or a number beyond any machine.
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free = min(free, int(text) - int(used.read_text()) + _page_cache(limit.parent) + kept)
    return max(free, 0)


def _page_cache(folder: Path) -> int:
    """Return the part of a container's memory that only caches files."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
