"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = secrets.token_hex(32)
"""Token of all clusters: Ray reads it once in a process, as it does the variables below."""


@contextmanager
def local_cluster(nodes: int, cpus: int, **each: Any) -> Iterator[str]:
    """Start a head without cores and some nodes; yield the address.

    Parameters
    ----------
    nodes, cpus : int
        Number of nodes, and cores of each.
    **each
        Further arguments of ``Cluster.add_node``.
    """
    # They stay: what this process starts later needs the same token.
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        # A busy machine takes longer than Ray waits by default.
        "RAY_raylet_start_wait_time_s": "180",
        # Workers wait for their next task however long the others take to start.
        "RAY_idle_worker_killing_time_threshold_ms": "3600000",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # Ray reads the environment when it is imported.
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, **each)
        yield cluster.address
    finally:
        cluster.shutdown()
