"""The nodes of a Ray cluster: their resources, and which of them a task may run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from cosmoflow.engine.base import Resources
from cosmoflow.errors import IncompleteError
from cosmoflow.units import format_bytes

POOL = "cosmoflow/pool"
"""Label of a node for its purpose: ``head``, ``cpu`` or ``gpu``."""

MOST_ASKED = 10_000
"""Largest number of workers to request from an autoscaler, which has its own limit."""

_LOOK = 1.0
"""Seconds between two checks for new nodes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is up.

    Parameters
    ----------
    name : str
        Ray's id of the node.
    address : str
        IP address.
    cpus, gpus : int
        Number of cores and of GPUs.
    memory : int
        Bytes without the object store.
    pool : str
        Value of the label :data:`POOL`; empty without one.
    """

    name: str
    address: str
    cpus: int
    gpus: int
    memory: int
    pool: str

    def places(self, needs: Resources) -> int:
        """Return how many tasks with these needs fit on the node."""
        room = [self.cpus // needs.cpus]
        if needs.gpus:
            room.append(self.gpus // needs.gpus)
        if needs.memory:
            room.append(self.memory // needs.memory)
        return min(room)


def worker_nodes() -> list[Node]:
    """Return the nodes that are up and have at least one core."""
    nodes = [
        Node(
            name=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory=int(node["Resources"].get("memory", 0)),
            pool=node["Labels"].get(POOL, ""),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return [node for node in nodes if node.cpus >= 1]


def cpu_pool(nodes: list[Node]) -> list[Node]:
    """Return the nodes for work without GPUs: all but those labelled ``gpu``, if there are any."""
    return [node for node in nodes if node.pool != "gpu"] or nodes


def nodes_for(needs: Resources, nodes: list[Node] | None = None) -> list[Node]:
    """Return the nodes, by default of those that are up, on which a task may run.

    A task without GPUs does not run on nodes labelled ``gpu``, whose cores serve the GPUs, unless
    it fits on no other node.
    """
    fitting = [node for node in nodes or worker_nodes() if node.places(needs)]
    return fitting if needs.gpus else cpu_pool(fitting)


def placement(
    needs: Resources, nodes: list[Node] | None = None, *, spread: bool = False
) -> dict[str, Any]:
    """Return the options of a Ray task or actor with these needs.

    Parameters
    ----------
    needs : Resources
        Needs of the task; they determine the allowed nodes, see :func:`nodes_for`.
    nodes : list of Node, optional
        The nodes that are up, if the caller has looked.
    spread : bool
        Distribute the tasks over the nodes in turn, rather than to the nodes of their inputs or the
        first one with room. For tasks without inputs, this fills the disks evenly.
    """
    options: dict[str, Any] = {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "memory": needs.memory or None,
    }
    nodes = nodes or worker_nodes()
    allowed, up = ({node.pool for node in found} for found in (nodes_for(needs, nodes), nodes))
    if allowed and "gpu" in up - allowed:
        options["label_selector"] = {POOL: "!gpu"}
    if spread:
        options["scheduling_strategy"] = "SPREAD"
    return options


def count_places(needs: Resources, nodes: list[Node] | None = None) -> int:
    """Return how many tasks with these needs fit on the nodes, by default those that are up."""
    return sum(node.places(needs) for node in nodes_for(needs, nodes))


def nodes_with(memory: int = 0) -> list[Node]:
    """Return the worker nodes with at least ``memory`` bytes.

    Raises
    ------
    IncompleteError
        There is no such node: the nodes have not joined yet, or have left.
    """
    nodes = worker_nodes()
    if fitting := [node for node in nodes if node.memory >= memory]:
        return fitting
    largest = max((node.memory for node in nodes), default=0)
    raise IncompleteError(
        f"no node is up with {f'{format_bytes(memory)} for a worker' if memory else 'a CPU'}",
        where="the Ray cluster",
        value=f"{len(nodes)} nodes with CPUs"
        + (f", the largest with {format_bytes(largest)}" if nodes else ""),
        remedy="see `ray status`; when nodes have joined, run the same command again (--resume "
        "continues what was begun)",
    )


def wait_for(needs: Resources, tasks: int, patience: float, notify: Callable[[str], None]) -> None:
    """Request room for some tasks side by side from an autoscaler, and wait until it is there.

    After ``patience`` seconds the function returns in any case; the caller checks the room.
    """
    if count_places(needs) >= tasks or not patience:
        return
    wanted = f"{tasks} x {needs.cpus} CPU" + (f" and {needs.gpus} GPU" if needs.gpus else "")
    notify(f"waiting up to {patience:g} s for nodes with {wanted} to join")
    ask_for(needs, tasks)
    try:
        begun = time.monotonic()
        while count_places(needs) < tasks and time.monotonic() - begun < patience:
            time.sleep(_LOOK)
    finally:
        with suppress(RayError):
            ask_for_nothing()


def ask_for(needs: Resources, tasks: int) -> None:
    """Request room for some tasks side by side from the autoscaler, if there is one.

    An autoscaler adds nodes only for waiting tasks. A pool starts no more workers than
    there are places, so without a request it would never grow beyond the nodes that it found.
    """
    bundle: dict[str, float] = {"CPU": needs.cpus}
    if needs.gpus:
        bundle["GPU"] = needs.gpus
    if needs.memory:
        bundle["memory"] = needs.memory
    bundles = [bundle] * min(tasks, MOST_ASKED)
    pools: list[dict[str, str]] = [placement(needs).get("label_selector", {})] * len(bundles)
    request_resources(bundles=bundles, bundle_label_selectors=pools)


def ask_for_nothing() -> None:
    """Withdraw the request for room, so that idle nodes may be removed.

    Ray keeps one request for the whole cluster, even if the driver that made it has ended.
    """
    request_resources(bundles=[])


Scarce = Literal["CPU", "GPU"]
"""Resources that are counted over the cluster."""


def total(resource: Scarce) -> int:
    """Return the total of a resource over all nodes that are up."""
    return int(ray.cluster_resources().get(resource, 0))
