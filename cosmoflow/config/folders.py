"""The folders that a local path begins at: a home folder, or the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from cosmoflow.errors import StorageError


def expand_home(path: str) -> str:
    """Return a local path with a leading ``~`` or ``~user`` replaced by that home folder.

    Shells expand ``~`` at the start of a word, but not after ``--out=``; notebooks and YAML files
    never do. ``./~`` means a file of that name, and so does ``~name`` where it exists.

    Parameters
    ----------
    path : str
        A local path.

    Returns
    -------
    str
        The same path where it does not begin with ``~``, or where there is no such user.

    Raises
    ------
    StorageError
        The home folder of this user is not known.
    """
    user = path.partition("/")[0]
    if not user.startswith("~") or (user != "~" and os.path.lexists(user)):
        return path
    # Path.expanduser raises RuntimeError where there is no such user.
    found = os.path.expanduser(path)  # noqa: PTH111
    home = os.environ.get("HOME", "/")
    if user == "~" and (found == path or not home.startswith("/")):
        raise StorageError(
            "the home folder that ~ stands for is not known",
            where=path,
            value=f"HOME={home!r}" if "HOME" in os.environ else "HOME is not set",
            remedy="give the whole path, or set HOME to a folder; ./~ means a file of that name",
        )
    return found


def require_working_directory(path: str | None = None) -> None:
    """Refuse to go on in a working directory that was deleted.

    Relative paths mean nothing there, and torch, its MKL and Ray fail without saying why.

    Parameters
    ----------
    path : str, optional
        The relative path that needs it, for the message.

    Raises
    ------
    StorageError
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise StorageError(
            "the working directory has been deleted",
            where=path,
            remedy="cd to a folder that exists, and run again; `cd .` is enough where a folder of "
            "the same name was made since",
        ) from None
