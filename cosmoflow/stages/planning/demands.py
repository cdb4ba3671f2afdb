"""Demands of each stage on cores, GPUs, network, storage and driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, cast

import torch

from cosmoflow.config.settings import Settings
from cosmoflow.engine import FREE_SHARE, USEFUL_CORES
from cosmoflow.model.registry import Architecture, find_architecture
from cosmoflow.model.velocity import UNIT, ModelSpec, VelocityModel
from cosmoflow.numerics.wiener import SETS, WienerFilter
from cosmoflow.stages import costs
from cosmoflow.stages.evaluate import Inputs
from cosmoflow.stages.evaluate import plan_work as plan_evaluation
from cosmoflow.stages.flows.plan import count_box, plan_flow
from cosmoflow.stages.flows.stored import WIENER_BYTES
from cosmoflow.stages.infer import Device, check_work, choose_layout, count_workers
from cosmoflow.stages.infer import plan_work as plan_inference
from cosmoflow.stages.inputs.readers import Method
from cosmoflow.stages.paint import make_plan, painted_variables, shards_near_piece
from cosmoflow.stages.planning.nodes import NodeType
from cosmoflow.stages.planning.shapes import (
    FieldShape,
    ParticleShape,
    fields_of,
    metadata_of,
    planned_run,
    worker_bytes,
)
from cosmoflow.stages.run import Plan
from cosmoflow.stages.simulate import plan_simulate
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Variable
from cosmoflow.stages.spectra import plan_power
from cosmoflow.stages.train import plan_training
from cosmoflow.storage.fields import FieldStore

SAMPLED_PIECES: Final = 64
"""Pieces of the particles that are sampled to estimate how many shards a piece touches."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Demand of a stage.

    Parameters
    ----------
    plan : Plan
        Plan of the stage: tasks, memory of a worker, bytes read, written and handed on.
    core_seconds : float
        Core-seconds of the measured cores.
    cpus : int
        CPUs that a task or worker uses.
    width : int
        Tasks that can run side by side, because passes wait for each other; 0 for all tasks.
    in_step : bool
        Whether the tasks of each pass wait for all of the pass before.
    flops : float
        Operations of networks on GPUs. Without GPUs they are part of the core-seconds.
    utilisation : float
        Share of a GPU's peak that the operations reach.
    parts : int
        Parts that tasks hand to one another.
    gets, puts : int
        Requests to an object store.
    prefixes : int
        Number of arrays that the requests go to.
    stored : float
        Bytes that stay, compressed.
    runs : int
        Number of runs, one after the other; all other figures are of one run.
    """

    plan: Plan
    core_seconds: float
    cpus: int = 1
    width: int = 0
    in_step: bool = False
    flops: float = 0.0
    utilisation: float = 1.0
    parts: int = 0
    gets: int = 0
    puts: int = 0
    prefixes: int = 1
    stored: float = 0.0
    runs: int = 1


def simulate_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of the boxes, each of which one node holds."""
    plan = plan_simulate(planned_run(settings, node, nodes))
    return Demand(
        plan,
        plan.cpu_seconds,
        cpus=USEFUL_CORES,
        puts=plan.requests.put,
        stored=plan.written / costs.COMPRESSION["particles"],
    )


def paint_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of painting a box."""
    config = settings.paint
    particles = ParticleShape(settings.simulate.particles, metadata_of(settings))
    plan = make_plan(particles, planned_run(settings, node, nodes))
    shards = plan.shards
    return Demand(
        plan,
        plan.cpu_seconds,
        width=min(shards, plan.tasks - shards),
        parts=count_painted_parts(settings, particles, plan.particles_per_task),
        gets=plan.requests.get,
        puts=plan.requests.put,
        prefixes=2 + len(painted_variables(config)),
        stored=plan.written / costs.COMPRESSION["fields"],
        runs=settings.simulate.count,
    )


def count_painted_parts(settings: Settings, particles: ParticleShape, piece: int) -> int:
    """Return the approximate number of parts that the pieces of the particles hand to shards."""
    ranges = particles.ranges(piece)
    sample = ranges[:: -(-len(ranges) // SAMPLED_PIECES)]
    touched = sum(
        int(shards_near_piece(particles, start, stop, settings.paint).sum())
        for start, stop in sample
    )
    return round(touched / len(sample) * len(ranges))


def train_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of training on all boxes, on GPUs if the nodes have any."""
    fields, config = fields_of(settings), settings.train
    run = planned_run(settings, node, nodes)
    plan = plan_training([fields.grid] * settings.simulate.count, run)
    return Demand(
        # Every worker is a task that runs as long as all others.
        replace(plan, tasks=config.workers, unit="workers"),
        0.0 if node.gpus else plan.cpu_seconds,
        cpus=USEFUL_CORES,
        flops=plan.flops if node.gpus else 0.0,
        utilisation=_utilisation(settings),
        gets=settings.simulate.count * _pieces(fields.grid, fields.chunk) * 4,
        prefixes=settings.simulate.count * 2,
        stored=plan.written,
    )


def flow_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of the global flows that the model needs."""
    fields = fields_of(settings)
    architecture = find_architecture(settings.train.model)
    names = SETS[architecture.filter] if architecture.filter is not None else ("contrast",)
    run = planned_run(settings, node, nodes)
    cells = fields.grid**3
    if cells * WIENER_BYTES <= FREE_SHARE * worker_bytes(node):
        seconds, parts, cpus, width = cells * costs.FLOW_CELL, 0, USEFUL_CORES, 1
        plan = Plan("flow", 1, "box", WIENER_BYTES * cells, 4 * cells, 12 * cells, seconds)
        plan = replace(plan, requests=count_box(fields))
    else:
        plan = plan_flow(Grid.of(fields), names, run)
        parts, cpus, width = plan.parts, plan.threads, min(plan.bars, plan.slabs)
    return Demand(
        plan,
        plan.cpu_seconds,
        cpus,
        width,
        in_step=True,
        parts=parts,
        gets=plan.requests.get,
        puts=plan.requests.put,
        prefixes=2,
        stored=plan.written / costs.COMPRESSION["fields"],
        runs=architecture.flows,
    )


def infer_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of predicting one box."""
    fields = fields_of(settings)
    run = planned_run(settings, node, nodes)
    device = Device(
        "bfloat16" if node.gpus or node.fast_bfloat16 else "float32",
        None if node.gpu is None else node.gpu.memory,
    )
    models = [_weightless(settings, fields)]
    work = check_work(fields, [settings.train.model], models, run, device=device)
    work = replace(work, layout=choose_layout(work, fields, models, run))
    plan = plan_inference(work, fields, models, measured=False, workers=count_workers(run))
    needs = run.session.engine(0.0).share(
        plan.tasks, most=USEFUL_CORES, memory=plan.worker_memory, accelerated=True
    )
    return Demand(
        plan,
        plan.moving_seconds if node.gpus else plan.cpu_seconds,
        cpus=needs.cpus,
        flops=plan.flops if node.gpus else 0.0,
        utilisation=_utilisation(settings),
        gets=plan.requests.get,
        puts=plan.requests.put,
        prefixes=2 + models[0].flows,
        stored=plan.written / costs.COMPRESSION["fields"],
    )


def spectra_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of the power spectrum of the density."""
    fields = fields_of(settings)
    run = planned_run(settings, node, nodes)
    plan = plan_power([Variable("", "density", 1)], Grid.of(fields), run, stage="spectra")
    return Demand(
        plan,
        plan.cpu_seconds,
        plan.threads,
        width=min(plan.bars, plan.slabs),
        in_step=True,
        parts=plan.parts,
        gets=plan.requests.get,
    )


def evaluate_demand(settings: Settings, node: NodeType, nodes: int) -> Demand:
    """Return the demand of comparing one prediction with the truth."""
    fields = fields_of(settings)
    run = planned_run(settings, node, nodes)
    method = Method("prediction", fields.url)
    # The plan needs only the shapes of the stores.
    true = cast(FieldStore, fields)
    inputs = Inputs(true, {method.name: true}, (method,))
    plan = plan_evaluation(inputs, run)
    return Demand(
        plan,
        plan.cpu_seconds,
        cpus=plan.threads,
        parts=plan.parts,
        gets=plan.requests.get,
        prefixes=2 + len(plan.methods),
        stored=8e6,
    )


DEMANDS: Final[dict[str, Callable[[Settings, NodeType, int], Demand]]] = {
    "simulate": simulate_demand,
    "paint": paint_demand,
    "train": train_demand,
    "flow": flow_demand,
    "infer": infer_demand,
    "spectra": spectra_demand,
    "evaluate": evaluate_demand,
}
"""Demands of every planned stage, in the order of the chain. The flow is a part of `infer`."""

ON_GPUS: Final = ("train", "infer")
"""Stages that run on nodes with GPUs."""


def _pieces(grid: int, size: int) -> int:
    """Return the number of chunks or shards of a scalar field."""
    return (-(-grid // size)) ** 3


def _utilisation(settings: Settings) -> float:
    """Return the share of a GPU's peak that the model reaches; 1 for filters without a network."""
    return costs.GPU_UTILISATION.get(settings.train.model, 1.0)


def _weightless(settings: Settings, fields: FieldShape) -> VelocityModel:
    """Return a model of the architecture that settings name, without its weights."""
    architecture: Architecture = find_architecture(settings.train.model)
    wiener = None
    if architecture.filter is not None:
        names = SETS[architecture.filter]
        wiener = WienerFilter(names, 1.0, ((1.0,) * len(names),))
    spec = ModelSpec(
        architecture.name,
        settings.train.target,
        fields.cell_size,
        fields.metadata.redshift,
        fields.metadata.cosmology.model_dump(mode="json"),
        UNIT,
        filter=wiener,
    )
    with torch.device("meta"):
        return VelocityModel(spec).eval()
