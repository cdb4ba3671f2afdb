"""The process that holds a claim, and whether it has ended."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a claim.

    Parameters
    ----------
    token : str
        Unique name of the claim.
    host : str
        Name of the machine, for messages.
    machine : str
        Identity of the machine and its process namespace: processes with the same value see each
        other's process ids.
    pid : int
        Process id.
    started : str or None
        Start time of the process, in the system's own form. Process ids are reused, so the id alone
        does not identify a process.
    since : str
        Time of the claim, for messages.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str | None
    since: str

    @classmethod
    def here(cls) -> Holder:
        """Return a holder for this process, with a new token."""
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            _machine(),
            os.getpid(),
            start_of_process(os.getpid()),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the arguments of :func:`Holder`."""
        return asdict(self)

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended; False for those of other machines."""
        if self.machine != _machine():
            return False
        started = start_of_process(self.pid)
        return started != self.started and not (started is None and _is_hidden(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    with suppress(OSError):
        # Containers may share a host name, and a machine keeps its name when it is restarted.
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return " ".join(parts)


def start_of_process(pid: int) -> str | None:
    """Return when a process started, in the system's own form; None if it has ended."""
    try:
        # The name of the process stands in brackets and may hold any character.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie has ended, but its parent has not waited for it yet.
        return None if state in "ZX" else fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_hidden(pid: int) -> bool:
    """Return whether a process exists that /proc does not show.

    Some systems hide the processes of other users (``hidepid=2``). It may be another process with
    the same id; then its heartbeats decide.
    """
    # On systems other than POSIX, signal 0 would end the process.
    if os.name != "posix" or Path(f"/proc/{pid}/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
