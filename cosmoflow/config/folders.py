"""Home folders and the working directory in local paths."""

from __future__ import annotations

import os
from pathlib import Path

from cosmoflow.errors import StorageError


def expand_home(path: str) -> str:
    """Return a local path with a leading ``~`` or ``~user`` replaced by that home folder.

    Shells expand ``~`` at the start of a word, but not after ``--out=``. Notebooks and YAML files
    do not expand it. ``./~`` means a file named ``~``, and ``~name`` means a file of that name if
    it exists.

    The path is returned unchanged if it has no leading ``~`` or if there is no such user.

    Raises
    ------
    StorageError
        The home folder of the current user is unknown.
    """
    user = path.partition("/")[0]
    if not user.startswith("~") or (user != "~" and os.path.lexists(user)):
        return path
    # Path.expanduser raises RuntimeError if there is no such user.
    found = os.path.expanduser(path)  # noqa: PTH111
    home = os.environ.get("HOME", "/")
    if user == "~" and (found == path or not home.startswith("/")):
        raise StorageError(
            "the home folder that ~ stands for is unknown",
            where=path,
            value=f"HOME={home!r}" if "HOME" in os.environ else "HOME is not set",
            remedy="give the full path, or set HOME to a folder; ./~ means a file of that name",
        )
    return found


def require_working_directory(path: str | None = None) -> None:
    """Check that the working directory still exists.

    In a deleted directory, relative paths have no meaning, and torch, MKL and Ray fail without
    giving the cause.

    Parameters
    ----------
    path : str, optional
        Relative path that needs the directory, for the error message.

    Raises
    ------
    StorageError
        The working directory has been deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise StorageError(
            "the working directory has been deleted",
            where=path,
            remedy="cd to a folder that exists and run again; `cd .` is enough if the folder was "
            "created again since",
        ) from None
