"""A Ray cluster of processes that `ray start` started, as a person has it on several machines."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
WITH_US = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
"""A test run that is killed cannot end its nodes; so the kernel does."""
START_SECONDS = 240.0
"""Within which a node must be up, on a machine that is busy with other things."""
STORE = 256 << 20
"""Bytes of each node's object store."""
MARK = "COSMOFLOW_TEST_NODE"
"""The environment variable by which all processes of a node are known, orphans among them."""


class Node:
    """One node: `ray start --block` and all that it has started.

    Parameters
    ----------
    folder : Path
        For what it writes; a short path, for there are Unix sockets in it.
    arguments : sequence of str
        Of `ray start`, beside those that every node has.
    environment : mapping
        Of its processes.
    inside : sequence of str
        What the command line begins with: how to enter a network namespace, say.
    """

    def __init__(self, folder, arguments, environment, inside=()):
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        self.log = folder / "start.log"
        command = [
            *WITH_US, *inside, RAY, "start", "--block", "--disable-usage-stats",
            f"--temp-dir={folder}", f"--object-store-memory={STORE}", "--include-log-monitor=false",
            "--log-style=record", *arguments,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**environment, MARK: self.name}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self):
        """Wait until it has joined: `ray start` says so after it has registered."""
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def processes(self):
        """Return the ids of all its processes."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and self._owns(entry)
        ]

    def _owns(self, entry):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            return False
        # What has ended and waits for its parent has no environment any more.
        return f"{MARK}={self.name}".encode() in environment.split(b"\0")

    def workers(self, title):
        """Return those that run something whose name begins so: `ray::` and a task or an actor."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                    found.append(pid)
        return found

    def kill(self):
        """End it as a power cut does: everything at once, nothing has a chance to say farewell."""
        deadline = time.monotonic() + 120.0
        while pids := self.processes():
            # What is being started while we look is found by looking again.
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, pids
            time.sleep(0.02)
        self.process.wait()

    def stop(self):
        """Ask it to end; `ray stop` would end every Ray of this machine."""
        with suppress(ProcessLookupError):
            self.process.terminate()


def no_dashboard(address):
    return ["--include-dashboard=false"]


class RayProcesses:
    """A head without CPUs, and workers of one CPU each.

    Parameters
    ----------
    folder : Path
        For what its nodes write.
    environment : mapping
        Of its nodes and of drivers.
    places : iterator of (address, sequence of str), optional
        For each node, the head first, its IP address and how to get there.
    head : callable
        Returns, from the cluster's address, what `ray start` is told of the head alone.
    """

    def __init__(self, folder, environment, places=None, head=no_dashboard):
        self.folder = folder
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.environment = {
            **environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token),
        }  # fmt: skip
        self._places = places or iter(lambda: ("127.0.0.1", ()), None)
        self._started = []
        self.workers = []
        ip, self.inside = next(self._places)
        self.address = f"{ip}:{free_port(ip)}"
        port = self.address.rsplit(":", 1)[1]
        self.head = self._start(
            (ip, self.inside),
            "head",
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            *head(self.address),
        )
        self.head.wait()

    def _start(self, place, pool, *arguments):
        ip, inside = place
        node = Node(
            self.folder / str(len(self._started)),
            [f"--node-ip-address={ip}", f"--labels=cosmoflow/pool={pool}", *arguments],
            self.environment,
            inside,
        )
        self._started.append(node)
        return node

    def join(self, count=1, *, wait=True):
        """Add workers, at the same time."""
        joining = [
            self._start(next(self._places), "cpu", f"--address={self.address}", "--num-cpus=1")
            for _ in range(count)
        ]
        self.workers += joining
        for node in joining if wait else ():
            node.wait()

    def kill_node(self, index=0):
        """Kill a worker with all that runs on it."""
        self.workers.pop(index).kill()

    def python(self, *arguments, environment=None, **how):
        """Start a driver: a Python on the head, without the variables that are None."""
        variables = {**self.environment, **(environment or {})}
        return subprocess.Popen(
            [*self.inside, sys.executable, *map(str, arguments)],
            env={name: value for name, value in variables.items() if value is not None},
            start_new_session=True, **how,
        )  # fmt: skip

    def close(self):
        """End all nodes, and see to it that nothing of them is left."""
        for node in reversed(self._started):
            node.stop()
        deadline = time.monotonic() + 5.0
        for node in self._started:
            with suppress(subprocess.TimeoutExpired):
                node.process.wait(max(0.0, deadline - time.monotonic()))
        for node in self._started:
            node.kill()
            assert not node.processes()


def free_port(ip):
    """Return a port that nobody listens on; in a namespace of its own every port is free."""
    with socket.socket() as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return 6379
        return probe.getsockname()[1]


@contextmanager
def ray_processes(workers, *, environment=None, **how):
    """Yield a cluster of a head and some workers, all of which have joined.

    Parameters
    ----------
    workers : int
        Their number.
    environment : mapping, optional
        Variables beside this process's own, for the nodes and drivers.
    how
        See :class:`RayProcesses`.
    """
    # Not pytest's folder, whose path is too long for the sockets inside.
    folder = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    cluster = None
    try:
        cluster = RayProcesses(folder, {**inherited, **(environment or {})}, **how)
        cluster.join(workers)
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
