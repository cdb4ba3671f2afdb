"""Commands in processes of their own, to be killed.

They are forks of a process that has imported what commands need. What a command does is the same as
in a Python of its own, but for Python's start and end.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmoflow.cli.app import run_app
from cosmoflow.storage.claims import Claim
from tests.forks import fork


class Command:
    """A running command, with what its tests use of :class:`subprocess.Popen`."""

    def __init__(self, arguments, **how):
        file, name = tempfile.mkstemp()
        os.close(file)
        self._messages = Path(name)
        self._process = fork(_run, arguments, name, **how)
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def kill(self):
        self._process.kill()

    def messages(self):
        """Return what it has written to stderr so far."""
        return self._messages.read_text()

    def communicate(self, timeout=None):
        """Wait for its end; return what it has written to stderr."""
        self.wait(timeout)
        said = self.messages()
        self._messages.unlink()
        return None, said.encode()


def _run(arguments, messages, *, period=Claim.PERIOD, lease=Claim.LEASE, largest_file=None):
    """Run a command in this process."""
    os.setsid()
    null, written = os.open(os.devnull, os.O_WRONLY), os.open(messages, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(written, 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    Claim.PERIOD, Claim.LEASE = period, lease
    sys.exit(run_app(arguments))


def start(arguments, **how):
    """Start a command in a session of its own.

    Parameters
    ----------
    arguments : sequence
        Of the command, as strings or as what becomes them.
    period, lease : float, optional
        Of its claims, seconds.
    largest_file : int, optional
        Bytes beyond which no file may grow.
    """
    return Command([str(argument) for argument in arguments], **how)
