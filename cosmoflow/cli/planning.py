"""The command that plans a chain of stages on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cosmoflow.cli.console import Reporter
from cosmoflow.cli.options import JsonOption, MemoryOption, SetOption, set_example
from cosmoflow.config import load_settings
from cosmoflow.units import format_bytes

if TYPE_CHECKING:
    from cosmoflow.stages.planning import ChainPlan

_NO_GPUS = "none"


@set_example("simulate.particles=2048")
def plan(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or a preset's name: gigabox.")
    ],
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Stages among simulate,paint,train,infer,spectra,evaluate."
        ),
    ] = None,
    node: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Node type, e.g. m7i.16xlarge.")
    ] = None,
    gpu_node: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help=f"Node type for networks, or {_NO_GPUS}."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes of each stage, to find the time; excludes --hours.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Hours for all stages, to find the nodes; excludes --nodes."),
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Use typical spot prices.")] = False,
    prices: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A YAML file of node types and their prices."),
    ] = None,
    overrides: SetOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan a chain of stages on a cluster: nodes, hours, memory, bytes and cost."""
    from cosmoflow.stages.planning import DEFAULT_GPU_NODE, DEFAULT_NODE
    from cosmoflow.stages.planning import plan as make_plan

    settings = load_settings(config, overrides or (), {"engine": {"memory": memory}})
    found = make_plan(
        settings,
        stages=None if stages is None else [name.strip() for name in stages.split(",")],
        node=node or DEFAULT_NODE,
        gpu_node=None if gpu_node == _NO_GPUS else gpu_node or DEFAULT_GPU_NODE,
        nodes=nodes,
        hours=hours,
        spot=spot,
        prices=prices,
    )
    reporter = Reporter(as_json=as_json, verbosity=0)
    reporter.result(found.to_json(), lambda console: _show(console, config, found))


def _show(console: Console, title: str, found: ChainPlan) -> None:
    """Print a table of the stages, the totals, and the resources to request of an autoscaler."""
    types: dict[str, list[str]] = {}
    for one in found.stages:
        types.setdefault(one.node, []).append(one.stage)
    nodes = "; ".join(f"{', '.join(stages)} on {node}" for node, stages in types.items())
    console.print(f"{title}: {nodes}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "nodes", "time", "limit", "per worker", "exchanged", "stored", "USD"):
        words = heading in ("stage", "limit")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for one in found.stages:
        table.add_row(
            one.stage + (f" x {one.runs}" if one.runs > 1 else ""),
            str(one.nodes),
            _duration(one.seconds),
            one.limit,
            format_bytes(one.worker_memory),
            *(format_bytes(count) if count else "-" for count in (one.exchanged, one.stored)),
            f"{one.usd:,.2f}",
        )
    console.print(table)
    for one in found.stages:
        if one.exchanged:
            each = format_bytes(one.exchanged / one.runs / one.nodes)
            console.print(f"{one.stage}: {each} go to the disk of each node")
    console.print(
        f"total: {_duration(found.seconds)}, {found.usd:,.2f} USD at "
        f"{'spot' if found.spot else 'on-demand'} prices, including requests "
        f"({found.requests_usd:,.2f}) and storage of {format_bytes(found.stored)} for a month "
        f"({found.storage_usd:,.2f}); egress is not counted",
        soft_wrap=True,
    )
    cpus, gpus = (
        max(int(one.request.get(name, 0)) for one in found.stages) for name in ("CPU", "GPU")
    )
    console.print(f"ask the autoscaler for up to {cpus} CPUs and {gpus} GPUs")
    for note in found.notes:
        console.print(note, soft_wrap=True)


def _duration(seconds: float) -> str:
    """Return a duration as text, in s, min or h."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    if seconds < 7200.0:
        return f"{seconds / 60.0:.0f} min"
    return f"{seconds / 3600.0:.1f} h"
