"""Compiled functions that are kept on disk, and made anew when any file that they use changes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit

from cosmoflow.errors import ConfigError

if config.DISABLE_JIT:
    # Painting is made of vector instructions that Python has no words for.
    raise ConfigError(
        "numba's compiler is switched off, and cosmoflow does not work without it",
        where="the environment",
        value="NUMBA_DISABLE_JIT=1",
        remedy="unset NUMBA_DISABLE_JIT",
    )


@cache
def _digest(folder: Path) -> str:
    """Return a digest of all source files of a folder."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function with numba, without the GIL, and keep it on disk.

    numba compiles a kept function anew when the file that it stands in has changed. What it calls
    and the constants that it uses may stand in other files of its folder: one that was compiled
    with yesterday's constants would read and write in the wrong places.

    Parameters
    ----------
    **options
        More of those of :func:`numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(cache=True, nogil=True, **options)(function)
        kept = dispatcher._cache._cache_file
        folder = Path(inspect.getfile(function)).parent
        kept._source_stamp = (kept._source_stamp, _digest(folder))
        return dispatcher

    return decorate
