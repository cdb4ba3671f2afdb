"""The stages as passes of tasks, cut as the stages themselves cut boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from _cluster import Node, Pass, Rates

from cosmoflow.config import Settings, load_settings
from cosmoflow.engine.exchange.crews import MOMENT
from cosmoflow.numerics.slabs import field_bytes
from cosmoflow.numerics.wiener import SETS
from cosmoflow.stages import costs
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.planning.demands import DEMANDS, Demand
from cosmoflow.stages.planning.estimate import busy_cores
from cosmoflow.stages.planning.nodes import NodeType
from cosmoflow.stages.planning.shapes import (
    LARGEST_DISPLACEMENT,
    fields_of,
    planned_run,
    store_bytes,
    worker_bytes,
)
from cosmoflow.stages.slabs.plan import Grid

PARTICLES_PER_CELL = 2
"""Along an axis: eight in a cell of 2 Mpc/h, what the network that ships was trained at."""
CELL = 2.0
SHARD = 256
TASK_SECONDS, ANSWER_SECONDS, NEXT_ANSWER_SECONDS = 6.0e-5, 1.5e-3, 3.0e-4
"""CPU time of the driver for a task, for an answer of a crew about some, which wakes the driver's
threads, and for one that finds them at work: the rows of `cluster_scaling.py --driver` with many
crews."""
SUBMITTED_SECONDS = 1.0e-3
"""CPU time of a crew for a task: what the driver takes where it submits tasks itself."""
PIPELINE = 3
"""Blocks that an actor of `infer` has in hand: it reads one, predicts one and writes one."""


def settings_for(grid: int) -> Settings:
    """Return the settings of a box of some cells of 2 Mpc/h."""
    return load_settings(
        options={
            "simulate": {"particles": PARTICLES_PER_CELL * grid, "box_size": CELL * grid},
            "paint": {"grid": grid, "shard": min(SHARD, grid), "chunk": 64},
        }
    )


def rates() -> Rates:
    """Return the rates of the driver and of the store of objects."""
    return Rates(
        TASK_SECONDS,
        costs.STORE_PUTS,
        costs.STORE_GETS,
        costs.CONNECTIONS * costs.CONNECTION_BYTES,
        ANSWER_SECONDS,
        NEXT_ANSWER_SECONDS,
        MOMENT,
        SUBMITTED_SECONDS,
    )


def folders(settings: Settings) -> int:
    """Return the number of layers of shards along x.

    The shards of a layer have keys that begin alike, such as ``density/c/3/``: for S3 a prefix.
    """
    return -(-settings.paint.grid // settings.paint.shard_cells)


def node_for(demand: Demand, node: NodeType) -> Node:
    """Return a node as it is for the tasks of a stage: memory may leave some cores idle."""
    by_cpus = node.gpus if demand.flops else max(1, node.vcpus // demand.cpus)
    places = min(by_cpus, worker_bytes(node) // max(demand.plan.worker_memory, 1))
    cpus = node.vcpus if demand.flops else min(node.vcpus, places * demand.cpus)
    disk = costs.DISK_BYTES if node.disk else costs.VOLUME_BYTES
    return Node(places, busy_cores(node, cpus) / places, node.network, disk, store_bytes(node))


def all_of(tasks: int) -> tuple[tuple[range, ...], ...]:
    """Return the waits of tasks that need a part of every one of the pass before."""
    return ((range(tasks),),)


def paint_passes(settings: Settings, node: NodeType, nodes: int = 1) -> tuple[list[Pass], Demand]:
    """Return the passes of `paint`: pieces of the particles, then shards."""
    demand = DEMANDS["paint"](settings, node, nodes)
    plan = demand.plan
    shards = plan.details["shards"]
    pieces = plan.tasks - shards
    particles, numbers = plan.details["particles"], plan.written / 4
    copies = plan.exchanged / plan.read
    sorting = particles * (costs.READ_PARTICLE + copies * costs.SORT_PARTICLE)
    painting = copies * particles * costs.PAINT_PARTICLE + numbers * costs.WRITE_NUMBER
    layers = round(shards ** (1 / 3))
    stored = plan.read / costs.COMPRESSION["particles"]
    first = Pass(
        "bucket", pieces, sorting / pieces, read=stored / pieces, gets=demand.gets / pieces,
        prefixes=2, handed=plan.exchanged / pieces, parts_out=demand.parts / pieces,
    )  # fmt: skip
    second = Pass(
        "paint", shards, painting / shards, written=demand.stored / shards,
        puts=demand.puts / shards, prefixes=demand.prefixes - 2, fetched=plan.exchanged / shards,
        parts_in=demand.parts / shards, waits=_layers(pieces, layers, settings),
    )  # fmt: skip
    return _with_handing([first, second]), demand


def _with_handing(passes: list[Pass]) -> list[Pass]:
    """Add the core-seconds that handing on parts and their bytes takes."""
    return [
        replace(
            one,
            core_seconds=one.core_seconds
            + one.handed * costs.HANDED_BYTE
            + one.parts_out * costs.PART_SECONDS,
        )
        for one in passes
    ]


def _layers(pieces: int, layers: int, settings: Settings) -> tuple[tuple[range, ...], ...]:
    """Return the pieces, in Lagrangian order, whose particles may be in each layer of shards."""
    reach = LARGEST_DISPLACEMENT / settings.simulate.box_size
    waits = []
    for layer in range(layers):
        low = math.floor((layer / layers - reach) * pieces)
        high = math.ceil(((layer + 1) / layers + reach) * pieces)
        if high - low >= pieces:
            waits.append((range(pieces),))
        elif low < 0:
            waits.append((range(high), range(low + pieces, pieces)))
        elif high > pieces:
            waits.append((range(low, pieces), range(high - pieces)))
        else:
            waits.append((range(low, high),))
    return tuple(waits)


def spectra_passes(
    settings: Settings, node: NodeType, nodes: int = 1, tasks: int | None = None
) -> tuple[list[Pass], Demand]:
    """Return the passes of the density's spectrum, bars and slabs, or ``tasks`` of each."""
    demand = DEMANDS["spectra"](settings, node, nodes)
    bars, slabs = (tasks or demand.plan.details[name] for name in ("bars", "slabs"))
    moved, half = demand.plan.exchanged, demand.core_seconds / 2
    stored = demand.plan.read / costs.COMPRESSION["fields"]
    passes = [
        Pass("bars", bars, half / bars, read=stored / bars, gets=demand.gets / bars,
             prefixes=folders(settings), handed=moved / bars, parts_out=slabs),
        Pass("slabs", slabs, half / slabs, fetched=moved / slabs, parts_in=bars,
             waits=all_of(bars)),
    ]  # fmt: skip
    return _with_handing(passes), demand


def flow_passes(
    settings: Settings, node: NodeType, nodes: int = 1, tasks: int | None = None
) -> tuple[list[Pass], Demand]:
    """Return the passes of the Wiener-filtered flow: bars and slabs in turn, then writing."""
    fields, names = fields_of(settings), SETS["wiener"]
    plan = plan_flow(Grid.of(fields), names, planned_run(settings, node, nodes))
    if tasks is not None:
        plan = replace(plan, bars=tasks, slabs=tasks)
    found, layers = plan.fields, plan.cut.layers
    modes = field_bytes(fields.grid)
    work = modes / 4 * costs.FLOW_NUMBER
    squares, pointwise = len(found.squares), len(found.pointwise)
    # Each pass: its tasks, the fields that it hands on and is handed, and its parts for each task
    # of the next. Those of the pointwise fields wait for the flow.
    chain = [
        ("bars", plan.bars, pointwise, 0, pointwise),
        ("tide", plan.slabs, found.travelling, 1, 1),
        ("squares", plan.bars, squares, found.travelling, squares),
        ("flow", plan.slabs, 3, pointwise + squares, 1),
    ]
    passes = []
    for (name, count, handed, needs, parts), readers in zip(
        chain, (plan.slabs, plan.bars, plan.slabs, plan.bars), strict=True
    ):
        first = not passes
        passes.append(
            Pass(
                name, count, work * handed / count,
                read=plan.read / costs.COMPRESSION["fields"] / count if first else 0.0,
                gets=plan.requests.get / count if first else 0.0, prefixes=folders(settings),
                fetched=needs * modes / count, handed=handed * modes / count,
                parts_out=parts * readers, waits=() if first else all_of(passes[-1].tasks),
            )
        )  # fmt: skip
    stored = plan.written / costs.COMPRESSION["fields"]
    writing = plan.written / 4 * costs.WRITE_NUMBER
    if plan.cut.whole_shards:
        passes.append(
            Pass("write", plan.bars, (3 * work + writing) / plan.bars,
                 fetched=3 * modes / plan.bars, written=stored / plan.bars, puts=2.0 * layers,
                 prefixes=layers, waits=all_of(plan.slabs))
        )  # fmt: skip
    else:
        # The narrower bars of a column of shards, one after the other in these waits.
        shards, across = layers**3, plan.bars // layers
        passes += [
            Pass("velocity", plan.bars, 3 * work / plan.bars, fetched=3 * modes / plan.bars,
                 handed=plan.written / plan.bars, parts_out=layers, waits=all_of(plan.slabs)),
            Pass("write", shards, writing / shards, written=stored / shards, puts=2.0,
                 fetched=plan.written / shards,
                 waits=tuple((range(one * across, (one + 1) * across),) for one in range(layers))),
        ]  # fmt: skip
    return _with_handing(passes), Demand(plan, plan.cpu_seconds, plan.threads, parts=plan.parts)


def infer_passes(settings: Settings, node: NodeType, nodes: int = 1) -> tuple[list[Pass], Demand]:
    """Return the only pass of `infer`: blocks, which workers read, predict and write at once."""
    demand = DEMANDS["infer"](settings, node, nodes)
    plan, tasks = demand.plan, demand.plan.tasks
    seconds = demand.core_seconds
    if node.gpu is not None:
        # In core-seconds: a worker has a GPU and its share of the cores, and the slower one counts.
        cores = busy_cores(node, node.vcpus) / node.gpus
        rate = node.gpu.bfloat16 * demand.utilisation
        seconds = max(seconds, demand.flops / rate * cores)
    return [
        Pass("blocks", tasks, seconds / tasks, prefixes=folders(settings) * demand.prefixes,
             read=plan.read / costs.COMPRESSION["fields"] / tasks, gets=demand.gets / tasks,
             written=demand.stored / tasks, puts=demand.puts / tasks, alone=True)
    ], demand  # fmt: skip


Builder = Callable[[Settings, NodeType, int], tuple[list[Pass], Demand]]

STAGES: dict[str, Builder] = {
    "paint": paint_passes,
    "spectra": spectra_passes,
    "flow": flow_passes,
    "infer": infer_passes,
}


def node_of(stage: str, demand: Demand, node: NodeType) -> Node:
    """Return a node for a stage; a worker of `infer` has several blocks in hand."""
    one = node_for(demand, node)
    if stage != "infer":
        return one
    return Node(one.places * PIPELINE, one.speed / PIPELINE, one.network, one.disk, one.memory)
