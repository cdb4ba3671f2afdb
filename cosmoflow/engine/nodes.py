"""The nodes of a Ray cluster: what they have, and which of them a task may run on."""

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
"""The label of a node that says what it is for: ``head``, ``cpu`` or ``gpu``."""

MOST_ASKED = 10_000
"""Most workers that an autoscaler is asked for: its own limit decides."""

_LOOK = 1.0
"""Seconds between two looks for a node that is to come."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node that is up has to give.

    Parameters
    ----------
    name : str
        Ray's id of it.
    address : str
        Its IP address.
    cpus, gpus : int
        Cores and GPUs.
    memory : int
        Bytes beside its object store.
    pool : str
        The value of its label :data:`POOL`; empty without one.
    """

    name: str
    address: str
    cpus: int
    gpus: int
    memory: int
    pool: str

    def places(self, needs: Resources) -> int:
        """Return how many tasks with such needs it has room for."""
        room = [self.cpus // needs.cpus]
        if needs.gpus:
            room.append(self.gpus // needs.gpus)
        if needs.memory:
            room.append(self.memory // needs.memory)
        return min(room)


def worker_nodes() -> list[Node]:
    """Return the nodes that are up and have a core to give."""
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
    """Return the nodes for work that needs no GPU: all but those labelled so, where there are."""
    return [node for node in nodes if node.pool != "gpu"] or nodes


def nodes_for(needs: Resources) -> list[Node]:
    """Return the nodes on which a task with such needs may run.

    One without GPUs stays off the nodes whose label says that they are for GPUs, whose cores have
    them to feed, unless it fits nowhere else.
    """
    nodes = [node for node in worker_nodes() if node.places(needs)]
    return nodes if needs.gpus else cpu_pool(nodes)


def placement(needs: Resources, *, spread: bool = False) -> dict[str, Any]:
    """Return the options of a Ray task or actor with such needs.

    Parameters
    ----------
    needs : Resources
        They decide which nodes it may run on, see :func:`nodes_for`.
    spread : bool
        Over the nodes in turn, rather than where its inputs lie, or on the first node with room:
        what tasks without inputs hand on fills the object stores alike then.
    """
    options: dict[str, Any] = {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "memory": needs.memory or None,
    }
    allowed, up = ({node.pool for node in found} for found in (nodes_for(needs), worker_nodes()))
    if allowed and "gpu" in up - allowed:
        options["label_selector"] = {POOL: "!gpu"}
    if spread:
        options["scheduling_strategy"] = "SPREAD"
    return options


def count_places(needs: Resources) -> int:
    """Return how many tasks with such needs the nodes that are up have room for."""
    return sum(node.places(needs) for node in nodes_for(needs))


def nodes_with(memory: int = 0) -> list[Node]:
    """Return the worker nodes with so many bytes.

    Raises
    ------
    IncompleteError
        There is none: they have not joined yet, or are gone.
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


def wait_for(needs: Resources, tasks: int, patience: float, tell: Callable[[str], None]) -> None:
    """Wait until there is room for some tasks side by side, having asked an autoscaler for it.

    Returns after ``patience`` seconds all the same: whoever needs the room says what is missing.
    """
    if count_places(needs) >= tasks or not patience:
        return
    wanted = f"{tasks} x {needs.cpus} CPU" + (f" and {needs.gpus} GPU" if needs.gpus else "")
    tell(f"waiting up to {patience:g} s for nodes with {wanted} to join")
    ask_for(needs, tasks)
    try:
        begun = time.monotonic()
        while count_places(needs) < tasks and time.monotonic() - begun < patience:
            time.sleep(_LOOK)
    finally:
        with suppress(RayError):
            ask_for_nothing()


def ask_for(needs: Resources, tasks: int) -> None:
    """Tell an autoscaler, if there is one, how many tasks of which needs are to run side by side.

    It would find out by itself, but only from what waits: a pool asks for no more workers than
    there are places, and would never grow beyond the nodes that it found.
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
    """Take back what was asked for: idle nodes may go.

    Ray keeps one request for the whole cluster, also when the driver that made it is gone.
    """
    request_resources(bundles=[])


Scarce = Literal["CPU", "GPU"]
"""What a cluster has a total of."""


def total(resource: Scarce) -> int:
    """Return how much of a resource all nodes that are up have."""
    return int(ray.cluster_resources().get(resource, 0))
