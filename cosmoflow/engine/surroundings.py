"""The environment of Ray: folders, token, search path, signals.

Ray takes them from the process that starts it. If they are unusual, it fails, or a module in the
working folder hides a library.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray.job_config import JobConfig

import cosmoflow
from cosmoflow.errors import ConfigError

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""

_SOCKET = "/session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket in Ray's folder."""

FOLDER_BYTES = SOCKET_BYTES - len(_SOCKET)
"""Longest path of a folder in which Ray can have its sockets."""

SHORT_FOLDERS = ("/tmp/ray", "/var/tmp/ray", "/dev/shm/ray")
"""Folders for Ray's sockets and logs if TMPDIR cannot be used."""


def choose_folders() -> dict[str, str]:
    """Return the arguments of ``ray.init`` for the folders of Ray; empty by default.

    If the path of TMPDIR is too long for sockets, sockets and logs go elsewhere. Spilled objects,
    which are large, still go to TMPDIR.

    Raises
    ------
    ConfigError
        There is no folder for the sockets.
    """
    asked = get_default_ray_temp_dir()
    # With a relative path, Ray waits in vain for its own processes. An empty TMPDIR is ignored.
    folder = str(Path(asked if asked != "ray" else "/tmp/ray").absolute())
    usable = _is_usable(folder)
    if usable and len(os.fsencode(folder)) <= FOLDER_BYTES:
        return {} if folder == asked else {"_temp_dir": folder}
    for short in SHORT_FOLDERS:
        if _is_usable(short):
            spill = {"object_spilling_directory": folder} if usable else {}
            return {"_temp_dir": short, **spill}
    raise ConfigError(
        "Ray finds no folder for its sockets",
        where="RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR",
        value=folder,
        limit=f"a writable folder whose path has at most {FOLDER_BYTES - len('/ray')} bytes",
        remedy="set TMPDIR to such a folder, or do without Ray: --engine serial",
    )


def _is_usable(folder: str) -> bool:
    """Return whether files can be written in a folder, which is created if it is missing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def ensure_token() -> str:
    """Make a token for Ray on this machine if Ray cannot write its token file.

    Ray keeps the token in the home folder, which a container or a batch system may lack.

    Returns
    -------
    str
        Where the token is, in a sentence for the user.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "Ray on this machine asks for no token, because RAY_AUTH_MODE is not token"
    said = "Ray on this machine asks for a token (RAY_AUTH_MODE=token)"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"{said}, that of the variable {name}"
    try:
        file = Path.home() / ".ray" / "auth_token"
        if file.is_file():
            return f"{said}, that of the file {file}"
        if _is_usable(str(file.parent)):
            return f"{said}, which it writes to the file {file}"
    except (RuntimeError, OSError):
        # No home folder is known, or it cannot be looked into.
        pass
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return f"{said}, made for this run in RAY_AUTH_TOKEN, because the home folder is not writable"


class _SearchPath(list[str]):
    """The first folders of the search path of workers.

    Ray adds the working folder of the driver. A script called zarr.py there would hide the library
    from workers, even if the driver itself does not search that folder.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add the folders that are in the search path of this process too."""
        own = {os.path.realpath(folder) for folder in sys.path}
        super().extend(folder for folder in folders if os.path.realpath(folder) in own)


def describe_job() -> JobConfig:
    """Return the configuration of this process as a driver of Ray.

    Workers on this machine import the same cosmoflow as this process, from any folder.
    """
    job = JobConfig()
    job._py_driver_sys_path = _SearchPath()
    root = str(Path(cosmoflow.__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        job._py_driver_sys_path.append(root)
    return job


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM afterwards, if it was set in Python.

    Ray's own handler ends the process at once and dumps its stack.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
