"""Predict how the chain scales to 1,024 nodes, and measure how it does on one and two.

Usage: python benchmarks/cluster_scaling.py [--node TYPE] [--gpu-node TYPE] [--what-if]
           [--figure FILE.png]
       python benchmarks/cluster_scaling.py --measure FOLDER --fields FIELDS [--rounds N]
       python benchmarks/cluster_scaling.py --driver
       python benchmarks/cluster_scaling.py --engine [--nodes N]

The first form runs a model of a cluster, event by event (`_cluster.py`), on the chain paint,
spectra, flow, infer, cut into tasks as the stages cut it, with the costs that `cosmoflow plan`
counts with. It prints strong scaling (4096^3 and 8192^3 cells) and weak scaling (from 1024^3 cells
on one node), the efficiency, and which resource is the busiest. --what-if says what other cuts, and
other hardware, would do at the largest size. --measure runs the real commands on a Ray cluster of
one and of two nodes of one core each on this machine, --driver times Ray's driver. --engine runs
the real engine on a cluster of small nodes on this machine, with tasks that sleep for the time that
the model gives them, and prints the model's time beside the measured one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from _cluster import Outcome, Pass, Rates, Simulation
from _cluster_stages import (
    STAGES,
    flow_passes,
    node_of,
    paint_passes,
    rates,
    settings_for,
    spectra_passes,
)

from cosmoflow.stages import costs
from cosmoflow.stages.planning.demands import Demand
from cosmoflow.stages.planning.nodes import NodeType, find_node

STRONG = {4096: (1, 4, 16, 64, 256, 1024), 8192: (16, 64, 256, 1024)}
"""Cells per axis, and the nodes that share them."""
WEAK = ((1, 1024), (8, 2048), (64, 4096), (512, 8192))
"""Nodes, and cells per axis: as many for every node."""


def type_of(stage: str, given: argparse.Namespace) -> NodeType:
    """Return the type of node that a stage runs on."""
    name = given.gpu_node if stage == "infer" else given.node
    return find_node(name, "--node")


@cache
def simulate(stage: str, cells: int, node: NodeType, nodes: int) -> Outcome:
    """Return what a stage takes."""
    passes, demand = STAGES[stage](settings_for(cells), node, nodes)
    return run(stage, passes, demand, node, nodes, rates())


def run(
    stage: str, passes: Sequence[Pass], demand: Demand, node: NodeType, nodes: int, some: Rates
) -> Outcome:
    """Run passes on a cluster; a task has connections for each of its cores, as plans count."""
    some = replace(some, connection=some.connection * demand.cpus)
    return Simulation(passes, node_of(stage, demand, node), nodes, some).run()


def fits(stage: str, cells: int, node: NodeType, nodes: int) -> bool:
    """Tell whether the disks of the nodes hold what is spilled."""
    return simulate(stage, cells, node, nodes).spilled <= nodes * (node.disk or 1e12)


def print_strong(given: argparse.Namespace) -> None:
    """Print one box on ever more nodes."""
    for cells, counts in STRONG.items():
        print(f"\n{cells}^3 cells, {2 * cells}^3 particles\n")
        print("| stage | nodes | seconds | efficiency | busiest | cores | network | disk | "
              "object store | driver |")  # fmt: skip
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for stage in STAGES:
            node, first = type_of(stage, given), None
            for nodes in counts:
                found = simulate(stage, cells, node, nodes)
                if not fits(stage, cells, node, nodes):
                    print(f"| {stage} | {nodes} | disks too small | | | | | | | |")
                    continue
                first = first or nodes * found.seconds
                print(_row(f"{stage} | {nodes}", found, first / nodes / found.seconds), flush=True)


def print_weak(given: argparse.Namespace) -> None:
    """Print ever larger boxes on as many more nodes."""
    print("\n| stage | cells | nodes | seconds | efficiency | busiest | cores | network | disk | "
          "object store | driver |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for stage in STAGES:
        node = type_of(stage, given)
        first = simulate(stage, WEAK[0][1], node, WEAK[0][0])
        for nodes, cells in WEAK:
            found = simulate(stage, cells, node, nodes)
            head = f"{stage} | {cells}³ | {nodes}"
            print(_row(head, found, first.seconds / found.seconds), flush=True)


def _row(head: str, found: Outcome, efficiency: float) -> str:
    names = ("cores", "network", "disk", "object store", "driver")
    shares = " | ".join(f"{found.busy[name]:.0%}" for name in names)
    return f"| {head} | {found.seconds:,.0f} | {efficiency:.0%} | {found.limit} | {shares} |"


def print_what_if(given: argparse.Namespace, cells: int = 4096, nodes: int = 256) -> None:
    """Print what other cuts and other hardware would do."""
    settings = settings_for(cells)
    node = type_of("paint", given)
    usual = rates()
    print(f"\n{cells}^3 cells on {nodes} nodes\n")
    print("| stage | what if | parts | seconds | busiest |")
    print("| --- | --- | --- | --- | --- |")

    def show(stage: str, what: str, passes: Sequence[Pass], demand: Demand, some: Rates) -> None:
        found = run(stage, passes, demand, type_of(stage, given), nodes, some)
        parts = sum(one.tasks * one.parts_out for one in passes)
        print(f"| {stage} | {what} | {parts:,.0f} | {found.seconds:,.0f} | {found.limit} |")

    fast = replace(
        usual,
        task=usual.task / 10.0,
        answer=usual.answer / 10.0,
        next_answer=usual.next_answer / 10.0,
    )
    for stage in ("paint", "spectra", "flow"):
        passes, demand = STAGES[stage](settings, node, nodes)
        show(stage, "as it is", passes, demand, usual)
        show(stage, "a driver ten times as fast", passes, demand, fast)
    larger = settings.model_copy(update={"paint": settings.paint.model_copy(update={"shard": 512})})
    passes, demand = paint_passes(larger, node, nodes)
    show("paint", "shards of 512 cells", passes, demand, usual)
    pieces = settings.model_copy(
        update={"paint": settings.paint.model_copy(update={"particles_per_task": 1 << 26})}
    )
    passes, demand = paint_passes(pieces, node, nodes)
    show("paint", "pieces of 67 million particles", passes, demand, usual)
    for stage in ("spectra", "flow", "infer"):
        passes, demand = STAGES[stage](larger, type_of(stage, given), nodes)
        show(stage, "shards of 512 cells", passes, demand, usual)
    for stage, build in (("spectra", spectra_passes), ("flow", flow_passes)):
        passes, demand = build(settings, node, nodes)
        show(stage, "tasks of one core each", passes, replace(demand, cpus=1), usual)
    passes, demand = spectra_passes(settings, node, nodes)
    slow = replace(node, network=node.network / 10.0)
    found = run("spectra", passes, demand, slow, nodes, usual)
    print(f"| spectra | a tenth of the network | | {found.seconds:,.0f} | {found.limit} |")
    passes, demand = STAGES["infer"](settings, type_of("infer", given), nodes)
    arrays = [replace(one, prefixes=demand.prefixes) for one in passes]
    show("infer", "S3 has split no array: one prefix each", arrays, demand, usual)
    passes, demand = paint_passes(settings, node, nodes)
    split = [replace(one, prefixes=16 * one.prefixes) for one in passes]
    show("paint", "S3 has split every array in sixteen", split, demand, usual)


def measure_engine(nodes: int) -> None:
    """Run the stages on the real engine with tasks that sleep."""
    from _cluster_harness import PLACES, cluster_of, run_stage

    settings, some = settings_for(2048), rates()
    small = replace(
        find_node("m6id.16xlarge", "--node"), vcpus=PLACES, cores=PLACES, memory=32 << 30
    )
    gpu = find_node("g6e.2xlarge", "--gpu-node")
    painting = settings_for(1024)
    pieces = painting.paint.model_copy(update={"particles_per_task": 1 << 24})
    painting = painting.model_copy(update={"paint": pieces})
    stages = {
        "paint": (*paint_passes(painting, small), small),
        "spectra": (*spectra_passes(settings, small, tasks=256), small),
        "flow": (*flow_passes(settings, small, tasks=128), small),
        "infer": (*STAGES["infer"](settings, gpu, 1), gpu),
    }
    print(f"{nodes} nodes of {PLACES} places\n")
    print("| stage | tasks | measured, s | model, s | ratio | driver, ms of CPU a task | load |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with cluster_of(nodes, PLACES) as session:
        for stage, (passes, demand, kind) in stages.items():
            node = node_of(stage, demand, kind)
            if stage != "infer":
                # A task has one core of the cluster, whatever memory it would take.
                node = replace(node, places=PLACES)
            found = run_stage(session.engine(0.0), passes, node, nodes, some, pool=stage == "infer")
            print(
                f"| {stage} | {found.tasks} | {found.seconds:.1f} | {found.simulated:.1f} | "
                f"{found.seconds / found.simulated:.2f} | "
                f"{1e3 * found.driver / found.tasks:.2f} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


def draw(given: argparse.Namespace, path: Path) -> None:
    """Draw strong and weak scaling."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    cells, counts = 4096, STRONG[4096]
    for number, stage in enumerate(STAGES):
        node, colour = type_of(stage, given), f"C{number}"
        there = [count for count in counts if fits(stage, cells, node, count)]
        seconds = [simulate(stage, cells, node, count).seconds for count in there]
        left.loglog(there, seconds, "o-", color=colour, label=stage)
        left.loglog(there, [seconds[0] * there[0] / n for n in there], ":", color=colour, lw=0.8)
        first = simulate(stage, WEAK[0][1], node, 1).seconds
        efficiency = [first / simulate(stage, box, node, nodes).seconds for nodes, box in WEAK]
        right.semilogx([nodes for nodes, _ in WEAK], efficiency, "o-", color=colour)
    left.set(xlabel="nodes", ylabel="seconds", title=f"strong: {cells}³ cells (dotted: ideal)")
    right.set(xlabel="nodes", ylabel="efficiency", title="weak: 1024³ cells a node", ylim=(0, 1.1))
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--node", default="m6id.16xlarge")
    parser.add_argument("--gpu-node", default="g6e.2xlarge")
    parser.add_argument("--what-if", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--measure", type=Path, metavar="FOLDER")
    parser.add_argument("--fields", help="of 128^3 cells of 2 Mpc/h, for --measure")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--driver", action="store_true")
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--nodes", type=int, default=8, help="of --engine")
    given = parser.parse_args()
    if given.measure or given.driver:
        from _cluster_crews import measure_crews
        from _cluster_harness import driver_milliseconds
        from _cluster_measure import measure, measure_driver

        if given.measure:
            measure(given.measure, given.fields, given.rounds)
        if given.driver:
            for places in (24, 48):
                taken = driver_milliseconds(2, places)
                print(f"2 nodes of {places} places: the driver {taken:.2f} ms a task", flush=True)
            measure_driver()
            measure_crews()
        return
    if given.engine:
        measure_engine(given.nodes)
        return
    share = costs.GPU_UTILISATION[settings_for(min(STRONG)).train.model]
    print(f"{given.node}; infer on {given.gpu_node}: {share:.0%} of its GPU's published peak")
    print_strong(given)
    print_weak(given)
    if given.what_if:
        print_what_if(given)
    if given.figure:
        draw(given, given.figure)


if __name__ == "__main__":
    main()
