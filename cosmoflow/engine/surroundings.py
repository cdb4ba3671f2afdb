"""What this process hands to Ray: folders, token, search paths, signals.

Ray takes all four from the surroundings of the process that starts it, and fails, or lets a module
of the working folder hide a library, where they are unusual.
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
"""Where Ray's sockets and logs go when they cannot go into TMPDIR."""


def choose_folders() -> dict[str, str]:
    """Return the arguments of ``ray.init`` that say where Ray has its files; none by default.

    Where the path of TMPDIR is too long for sockets, they go elsewhere with the logs; objects that
    exceed the memory are large and still go to TMPDIR.

    Raises
    ------
    ConfigError
        There is no folder for the sockets.
    """
    asked = get_default_ray_temp_dir()
    # Ray waits in vain for its own processes where the path is relative; an empty TMPDIR is none.
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
    """Tell whether files can be made in a folder, which is created."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def ensure_token() -> None:
    """Make a token for an instance of this process alone where Ray cannot write its file.

    Ray keeps the token in the home folder, which a container or a batch system may lack.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or named:
        return
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file() or _is_usable(str(folder)):
            return
    except (RuntimeError, OSError):
        # No home folder is known, or it cannot be looked into.
        pass
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class _SearchPath(list[str]):
    """The folders in which workers look for modules first.

    Ray adds the working folder of the driver. A script there that is called zarr.py would hide the
    library from workers, though not from a driver that does not look there.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add those of some folders in which this process looks too."""
        own = {os.path.realpath(folder) for folder in sys.path}
        super().extend(folder for folder in folders if os.path.realpath(folder) in own)


def describe_job() -> JobConfig:
    """Return the configuration of this process as a driver of Ray.

    Workers of this machine find the cosmoflow that this process runs, wherever that was imported
    from.
    """
    job = JobConfig()
    job._py_driver_sys_path = _SearchPath()
    root = str(Path(cosmoflow.__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        job._py_driver_sys_path.append(root)
    return job


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Have SIGTERM do afterwards what it did before, where that was said in Python.

    Ray's own handlers end the process at once, and with a dump of its stack.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
