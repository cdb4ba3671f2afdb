"""Compiled functions, cached on disk and recompiled when any file that they use changes."""

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
    # Painting uses vector instructions, which need the compiler.
    raise ConfigError(
        "numba's compiler is disabled, and cosmoflow does not work without it",
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
    """Compile a function with numba, without the GIL, and cache it on disk.

    numba alone recompiles a cached function only when the function's own file changes. Its callees
    and constants may be in other files of the same folder, and a function with outdated constants
    would read and write in the wrong places. Here a change of any file of the folder recompiles.

    Parameters
    ----------
    **options
        Further options of :func:`numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(cache=True, nogil=True, **options)(function)
        kept = dispatcher._cache._cache_file
        folder = Path(inspect.getfile(function)).parent
        kept._source_stamp = (kept._source_stamp, _digest(folder))
        return dispatcher

    return decorate
