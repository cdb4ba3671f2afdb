"""Estimate of the time of a stage on some nodes, and of the resource that limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cosmoflow.stages import costs
from cosmoflow.stages.planning.demands import Demand
from cosmoflow.stages.planning.nodes import NodeType
from cosmoflow.stages.planning.shapes import store_bytes, worker_bytes
from cosmoflow.stages.run import Plan

Resource = Literal["cores", "memory", "tasks", "GPU", "network", "object store", "disk", "driver"]
"""Possible limits. Cores have two more names: ``memory`` if too little of it leaves cores without a
task, and ``tasks`` if there are fewer tasks than cores."""

VOLUME_SPACE = 1 << 40
"""Bytes of the network volume of a node without local flash."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimate of one run of a stage.

    Parameters
    ----------
    seconds : float
        Time of the run, with the start of the command; infinite if the stage does not fit.
    limit : str
        Resource that all others wait for.
    busy : dict
        Seconds that each resource is at work.
    places : int
        Tasks or workers that a node runs at a time.
    spilled : int
        Bytes handed on that exceed the memory for them and are read back from disk.
    """

    seconds: float
    limit: Resource
    busy: dict[Resource, float]
    places: int
    spilled: int

    @property
    def fits(self) -> bool:
        """Whether the nodes have the memory and the disk."""
        return self.places > 0 and self.seconds < float("inf")


def estimate(demand: Demand, node: NodeType, nodes: int) -> Estimate:
    """Return the time of one run of a stage.

    All resources are assumed to work at once, so the busiest one decides. Where all tasks of a pass
    run at once and wait for all of the pass before, they read, compute and exchange one after the
    other.
    """
    plan = demand.plan
    by_cpus = node.gpus if demand.flops else max(1, node.vcpus // demand.cpus)
    by_memory = worker_bytes(node) // max(plan.worker_memory, 1)
    places = min(by_cpus, by_memory)
    spilled = max(0, plan.exchanged - nodes * store_bytes(node))
    if places == 0:
        return Estimate(float("inf"), "memory", {}, 0, spilled)
    if plan.exchanged / nodes > (node.disk or VOLUME_SPACE):
        return Estimate(float("inf"), "disk", {}, places, spilled)
    # The node with the most tasks decides.
    width = demand.width or plan.tasks
    rounds = -(-width // (nodes * places))
    working = min(places, -(-width // nodes))
    cpus = min(node.vcpus, working * demand.cpus)
    if demand.flops:
        cpus = node.vcpus
    uneven = rounds * nodes * working / width
    handing = plan.exchanged * costs.HANDED_BYTE + demand.parts * costs.PART_SECONDS
    work = demand.core_seconds + handing
    cores = work / (nodes * busy_cores(node, cpus)) * uneven
    name: Resource = "cores"
    if working < places:
        name = "tasks"
    elif by_memory < by_cpus:
        name = "memory"
    busy: dict[Resource, float] = {name: cores}
    if demand.flops and node.gpu is not None:
        rate = node.gpu.bfloat16 * demand.utilisation
        busy["GPU"] = demand.flops / (nodes * working * rate) * uneven
    busy["network"] = _network_seconds(plan, node, nodes)
    busy["object store"] = _store_seconds(demand, node, nodes)
    if spilled:
        disk = costs.DISK_BYTES if node.disk else costs.VOLUME_BYTES
        busy["disk"] = 2.0 * spilled / nodes / disk
    busy["driver"] = plan.tasks * costs.TASK_SECONDS
    limit = max(busy, key=lambda one: busy[one])
    seconds = busy[limit]
    if demand.in_step and rounds == 1:
        seconds = max(seconds, cores + busy["network"] + busy["object store"])
    return Estimate(costs.START_SECONDS + seconds, limit, busy, places, spilled)


def busy_cores(node: NodeType, cpus: int) -> float:
    """Return the number of whole cores that busy hardware threads amount to."""
    alone = min(cpus, node.cores)
    return alone + (costs.THREAD_GAIN - 1.0) * (cpus - alone)


def _network_seconds(plan: Plan, node: NodeType, nodes: int) -> float:
    """Return the seconds that the network interface of a node is at work, both ways at once."""
    # A node keeps its share of what tasks hand on.
    exchanged = plan.exchanged * (1.0 - 1.0 / nodes)
    most = exchanged + max(plan.read, plan.written) / costs.COMPRESSION["fields"]
    return most / nodes / node.network


def _store_seconds(demand: Demand, node: NodeType, nodes: int) -> float:
    """Return the seconds of the object store for its requests, or of connections for the bytes."""
    plan = demand.plan
    moved = (plan.read + plan.written) / costs.COMPRESSION["fields"]
    connections = nodes * node.vcpus * costs.CONNECTIONS * costs.CONNECTION_BYTES
    requests = demand.puts / costs.STORE_PUTS + demand.gets / costs.STORE_GETS
    return max(requests / demand.prefixes, moved / connections)


def bundles(plan: Plan, *, cpus: int = 1, gpus: int = 0, most: int = 1) -> list[dict[str, float]]:
    """Return the request to an autoscaler, in the form of Ray's ``request_resources``.

    It has ``CPU``, ``GPU`` and ``memory`` (bytes) of each of at most ``most`` concurrent tasks.
    """
    one: dict[str, float] = {"CPU": cpus, "memory": plan.worker_memory}
    if gpus:
        one["GPU"] = gpus
    return [dict(one) for _ in range(min(plan.tasks, most))]
