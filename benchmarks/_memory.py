"""What the processes of a command take, Ray's among them."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

LOOK = 0.05


class TreeMemory:
    """Watches a process and all that descend from it.

    Attributes
    ----------
    total : int
        Most bytes at one time: private memory of all, and what they share (Ray's object store).
    shared : int
        Most bytes of the latter.
    worker : int
        Most private bytes of one of Ray's workers, or of the process itself where there is none.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.total = self.shared = self.worker = 0
        self._process = process
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the process has ended."""
        self._thread.join()

    def _watch(self) -> None:
        try:
            root = psutil.Process(self._process.pid)
        except psutil.NoSuchProcess:
            return
        while self._process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            pairs = [(one, *_resident(one.pid)) for one in tree]
            shared = max(pair[2] for pair in pairs)
            own = [pair[1] for pair in pairs if _is_worker(pair[0])] or [pairs[0][1]]
            self.total = max(self.total, sum(pair[1] for pair in pairs) + shared)
            self.shared = max(self.shared, shared)
            self.worker = max(self.worker, *own)
            time.sleep(LOOK)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["ray::_run_node"] or process.name().startswith("ray::")
    except (psutil.NoSuchProcess, IndexError):
        return False


def _resident(pid: int) -> tuple[int, int]:
    """Return the private and the shared resident bytes of a process."""
    found = {"RssAnon": 0, "RssShmem": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) << 10
    except OSError:
        pass
    return found["RssAnon"], found["RssShmem"]


def watch(arguments: list[str]) -> tuple[float, TreeMemory, bytes]:
    """Run a command; return its seconds, its memory, what it printed."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(arguments, stdout=output)
        memory = TreeMemory(process)
        if process.wait():
            raise SystemExit(f"{' '.join(arguments)} failed")
        seconds = time.perf_counter() - begun
        memory.join()
        output.seek(0)
        return seconds, memory, output.read()
