"""Cache folder for numba when its default folders are not writable."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path


def choose_cache_folder() -> None:
    """Set numba's cache to a folder for temporary files if its default folders are not writable.

    numba caches compiled functions next to their source or under the home folder, and refuses to
    compile if it can write to neither, for example with a system-wide installation in a container
    whose user has no home.
    """
    if os.environ.get("NUMBA_CACHE_DIR") or os.access(Path(__file__).parent, os.W_OK):
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        kept = Path(home) / "numba"
        kept.mkdir(parents=True, exist_ok=True)
        if os.access(kept, os.W_OK):
            return
    except (OSError, RuntimeError):
        # There is no home folder, or it is not writable.
        pass
    os.environ["NUMBA_CACHE_DIR"] = str(_own_folder())
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]


def _own_folder() -> Path:
    """Return a folder for temporary files that only this user can write to.

    This matters because code in it is executed.
    """
    folder = Path(tempfile.gettempdir()) / f"cosmoflow-numba-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="cosmoflow-numba-"))
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if private and found.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix="cosmoflow-numba-"))
