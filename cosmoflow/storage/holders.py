"""Who holds a claim: a process of a machine, which may have ended."""

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
        Of this claim and no other.
    host : str
        Name of the machine, for people.
    machine : str
        What two processes have in common that see each other's process ids.
    pid : int
        The process.
    started : str or None
        When it started, in a form of its own: the number alone may soon be another process's.
    since : str
        When it claimed, for people.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str | None
    since: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process, with a new token."""
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            _machine(),
            os.getpid(),
            start_of_process(os.getpid()),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_dict(self) -> dict[str, str | int | None]:
        """Return what :func:`Holder` takes."""
        return asdict(self)

    def is_dead(self) -> bool:
        """Tell whether the process has certainly ended: it was on this machine, and is no more."""
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
        # Containers may share a name, and a machine keeps its own when it starts anew.
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return " ".join(parts)


def start_of_process(pid: int) -> str | None:
    """Return when a process started, in a form of its own; None if it has ended."""
    try:
        # The process's name, in brackets, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie has ended: only its parent has not looked yet.
        return None if state in "ZX" else fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_hidden(pid: int) -> bool:
    """Tell whether there is a process that /proc does not show, as those of others on some systems.

    Whether it is the one that was meant nobody can say then: its signs of life will.
    """
    # Elsewhere than on POSIX, signal 0 is one that ends a process.
    if os.name != "posix" or Path(f"/proc/{pid}/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
