"""A Ray cluster of several nodes on this machine, whose nodes and workers can be killed."""

import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from ray.cluster_utils import Cluster


class Nodes:
    """A head without CPUs, and nodes of one CPU each.

    Parameters
    ----------
    count : int
        Nodes beside the head.
    """

    def __init__(self, count):
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = []
        for _ in range(count):
            self.join()

    @property
    def address(self):
        return self._cluster.address

    def join(self):
        """Add a node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, wait=False))

    def kill_node(self, chosen=lambda name: True):
        """Kill the first node whose id is chosen, with all that runs on it; let another join."""
        node = next(node for node in self._nodes if chosen(node.node_id))
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self.join()

    def workers(self, title=b"ray::_Worker"):
        """Return the processes whose title begins so: by default, actors of a pool."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                found_title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if found_title.startswith(title):
                found.append(int(folder.name))
        return found

    def close(self):
        self._cluster.shutdown()


@contextmanager
def ray_nodes(count):
    """Yield a cluster that this process, and those that it starts, can join."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    nodes = Nodes(count)
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


def kill_process(pid, how=signal.SIGKILL):
    """Send a signal to a process, which may just have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, how)
