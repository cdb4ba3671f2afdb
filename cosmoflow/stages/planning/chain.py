"""Plan of a whole chain: stages, number of nodes of each, time and price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Final

from cosmoflow.config.settings import Settings
from cosmoflow.errors import ConfigError
from cosmoflow.model.registry import find_architecture
from cosmoflow.stages import costs
from cosmoflow.stages.planning.demands import DEMANDS, ON_GPUS, Demand
from cosmoflow.stages.planning.estimate import Estimate, bundles, estimate
from cosmoflow.stages.planning.nodes import (
    DEFAULT_GPU_NODE,
    DEFAULT_NODE,
    NODE_TYPES,
    NodeType,
    find_node,
    read_nodes,
)
from cosmoflow.stages.planning.report import ChainPlan, StageEstimate
from cosmoflow.stages.planning.shapes import worker_bytes
from cosmoflow.stages.train import FILTER_BYTES
from cosmoflow.units import format_bytes

STAGES: Final = ("simulate", "paint", "train", "infer", "spectra", "evaluate")
"""Stages that can be planned; the global flow is part of `infer`."""

LADDER: Final = tuple(
    sorted({base << step for base in (1, 3) for step in range(11) if base << step <= 1024})
)
"""Numbers of nodes to try."""

IDLE_ALLOWED: Final = 1.25
"""Highest price of a stage over its lowest price; the most nodes within it are chosen."""


def plan(
    settings: Settings | None = None,
    *,
    stages: Sequence[str] | None = None,
    node: str = DEFAULT_NODE,
    gpu_node: str | None = DEFAULT_GPU_NODE,
    nodes: int | None = None,
    hours: float | None = None,
    spot: bool = False,
    prices: str | PathLike[str] | None = None,
) -> ChainPlan:
    """Plan a chain of stages on a cluster: nodes, time, memory, bytes, price.

    Nothing is read, written or started. Memory, bytes and tasks are those that the stages
    themselves plan; times follow from what was measured on two cores, see ``docs/planning.md``.

    Parameters
    ----------
    settings : Settings, optional
        The boxes (``simulate``), the grid (``paint``), the model (``train.model``) and the rest.
        All boxes are simulated, painted and trained on; one of them is predicted and measured.
    stages : sequence of str, optional
        Names from :data:`STAGES`; by default all, but without `simulate` and `train` if no node
        holds a box.
    node, gpu_node : str
        Names from :data:`cosmoflow.stages.planning.nodes.NODE_TYPES`. Networks run on the second
        type; None runs all stages on the first.
    nodes : int, optional
        Number of nodes of each stage. Training takes as many as ``train.workers`` fill.
    hours : float, optional
        Deadline of the chain, which is met at the lowest price. Without ``nodes`` and ``hours``,
        each stage gets the most nodes that keep its price within a quarter of the lowest.
    spot : bool
        Use typical spot prices.
    prices : path, optional
        A price list in YAML whose types extend or replace those of the package; see
        ``docs/planning.md``.

    Returns
    -------
    ChainPlan

    Raises
    ------
    ConfigError
        A stage or type is unknown, the price list is not valid, a stage fits no such nodes, no
        number of them is fast enough, or the boxes are those of a design.
    """
    settings = settings or Settings()
    _check(stages, nodes, hours)
    if settings.simulate.design is not None:
        raise ConfigError(
            "a chain is planned for boxes of one size, and a design may have several",
            where="simulate.design",
            value=settings.simulate.design,
            remedy="leave it out and set simulate.box_size and simulate.count; `cosmoflow simulate "
            "--dry-run` plans the boxes of a design",
        )
    types = NODE_TYPES if prices is None else read_nodes(prices)
    cpu_type = find_node(node, "--node", types)
    gpu_type = cpu_type if gpu_node is None else find_node(gpu_node, "--gpu-node", types)
    notes: list[str] = []
    parts = [
        _Stage(name, settings, gpu_type if name in ON_GPUS else cpu_type, spot)
        for name in _choose_stages(settings, stages, cpu_type, notes)
    ]
    chosen = _choose_nodes(parts, nodes, hours)
    found = tuple(stage.result(count) for stage, count in zip(parts, chosen, strict=True))
    if any("GPU" in stage.busy for stage in found):
        share = costs.GPU_UTILISATION[settings.train.model]
        notes.append(f"GPU times: {share:.0%} of the published peak, as an H200 reaches")
    return ChainPlan(found, tuple(notes), spot)


class _Stage:
    """A stage, with estimates for any number of nodes of its type."""

    def __init__(self, name: str, settings: Settings, node: NodeType, spot: bool) -> None:
        self.name, self.node, self._settings = name, node, settings
        self._price = node.spot if spot else node.price
        self._demands: dict[int, Demand] = {}

    def demand(self, nodes: int) -> Demand:
        """Return the demand: blocks, and threads of tasks, depend on the number of workers."""
        if nodes not in self._demands:
            self._demands[nodes] = DEMANDS[self.name](self._settings, self.node, nodes)
        return self._demands[nodes]

    @property
    def fixed_nodes(self) -> int | None:
        """Number of nodes of training, whose workers the settings give; None for other stages."""
        if self.name != "train":
            return None
        each = self.node.gpus or max(1, self.node.vcpus // self.demand(1).cpus)
        return -(-self._settings.train.workers // each)

    def estimate(self, nodes: int) -> Estimate:
        """Return the time of one run."""
        return estimate(self.demand(nodes), self.node, nodes)

    def seconds(self, nodes: int) -> float:
        """Return the time of all runs."""
        return self.demand(nodes).runs * self.estimate(nodes).seconds

    def usd(self, nodes: int) -> float:
        """Return the price of the nodes."""
        return nodes * self._price * self.seconds(nodes) / 3600.0

    def result(self, nodes: int) -> StageEstimate:
        """Return the figures of the stage.

        Raises
        ------
        ConfigError
            The nodes have too little memory or disk.
        """
        demand, found = self.demand(nodes), self.estimate(nodes)
        plan, runs = demand.plan, demand.runs
        if not found.fits:
            self._refuse(demand, found, nodes)
        gpus = int(bool(demand.flops))
        asked = bundles(plan, cpus=demand.cpus, gpus=gpus, most=nodes * found.places)
        return StageEstimate(
            self.name, self.node.name, nodes, runs, runs * found.seconds, found.limit, found.busy,
            plan.worker_memory, runs * plan.tasks, runs * demand.parts, runs * plan.read,
            runs * plan.written, runs * plan.exchanged, found.spilled, runs * demand.stored,
            {"put": runs * demand.puts, "get": runs * demand.gets},
            nodes * self._price * runs * found.seconds / 3600.0,
            {name: sum(bundle[name] for bundle in asked) for name in asked[0]},
        )  # fmt: skip

    def _refuse(self, demand: Demand, found: Estimate, nodes: int) -> None:
        if found.limit == "memory":
            raise ConfigError(
                f"{self.name} does not fit this type of node",
                where=self.node.name,
                value=f"{format_bytes(demand.plan.worker_memory)} for a worker",
                remedy="a type with more memory",
            )
        raise ConfigError(
            f"{self.name} hands on more than the nodes can keep",
            where=f"{nodes} x {self.node.name}",
            value=format_bytes(demand.plan.exchanged),
            remedy="more nodes, or a type with local flash",
        )


def _check(stages: Sequence[str] | None, nodes: int | None, hours: float | None) -> None:
    if nodes is not None and hours is not None:
        raise ConfigError(
            "--nodes and --hours exclude each other",
            remedy="give the nodes, to know the time, or the time, to know the nodes",
        )
    if nodes is not None and nodes < 1:
        raise ConfigError("a cluster has nodes", where="--nodes", value=nodes, limit="1 or more")
    if hours is not None and not 0.0 < hours < math.inf:
        raise ConfigError("a deadline is a time from now", where="--hours", value=hours)
    for name in stages or ():
        if name not in STAGES:
            raise ConfigError(
                "no such stage", where="--stages", value=name, limit=", ".join(STAGES)
            )


def _choose_stages(
    settings: Settings, asked: Sequence[str] | None, node: NodeType, notes: list[str]
) -> list[str]:
    """Return the stages to plan, in order, and note which are left out and why."""
    names = [name for name in STAGES if asked is None or name in asked]
    if asked is None:
        boxes = DEMANDS["simulate"](settings, node, 1)
        if not estimate(boxes, node, 1).fits:
            names.remove("simulate")
            notes.append(
                f"simulate left out: a box takes {format_bytes(boxes.plan.worker_memory)} of one "
                "node; paint takes snapshots of other codes"
            )
        filtering = FILTER_BYTES * settings.paint.grid**3
        if filtering > worker_bytes(node):
            names.remove("train")
            notes.append(
                f"train left out: a box takes {format_bytes(filtering)} of one node; a model that "
                "was trained on smaller boxes serves"
            )
    if "infer" in names and find_architecture(settings.train.model).flows:
        names.insert(names.index("infer"), "flow")
    return names


def _choose_nodes(stages: Sequence[_Stage], nodes: int | None, hours: float | None) -> list[int]:
    """Return the number of nodes of each stage."""
    if nodes is not None:
        return [stage.fixed_nodes or nodes for stage in stages]
    if hours is None:
        return [_nearly_cheapest(stage) for stage in stages]
    fastest = sum(min(map(stage.seconds, _candidates(stage))) for stage in stages)
    if fastest > 3600.0 * hours:
        raise ConfigError(
            "no number of such nodes is fast enough",
            where="--hours", value=hours,
            limit=f"{fastest / 3600.0:.2g} hours or more, on up to {LADDER[-1]} nodes",
            remedy="another type of node, or fewer --stages",
        )  # fmt: skip
    # The price of an hour of waiting doubles until the nodes that it pays for are fast enough.
    hour_usd = 2.0**-8
    while True:
        chosen = [_cheapest(stage, hour_usd) for stage in stages]
        seconds = sum(stage.seconds(count) for stage, count in zip(stages, chosen, strict=True))
        if seconds <= 3600.0 * hours:
            return chosen
        hour_usd *= 2.0


def _candidates(stage: _Stage) -> list[int]:
    """Return the numbers of nodes that a stage fits; the largest where it fits none."""
    if stage.fixed_nodes is not None:
        return [stage.fixed_nodes]
    return [count for count in LADDER if stage.estimate(count).fits] or [LADDER[-1]]


def _cheapest(stage: _Stage, hour_usd: float) -> int:
    """Return the nodes of the least price where an hour of waiting has one too."""
    return min(
        _candidates(stage),
        key=lambda count: stage.usd(count) + hour_usd * stage.seconds(count) / 3600.0,
    )


def _nearly_cheapest(stage: _Stage) -> int:
    """Return the most nodes that stay within :data:`IDLE_ALLOWED` of the cheapest."""
    counts = _candidates(stage)
    least = min(stage.usd(count) for count in counts)
    return max(count for count in counts if stage.usd(count) <= IDLE_ALLOWED * least)
