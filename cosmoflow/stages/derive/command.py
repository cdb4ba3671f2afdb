"""Derived fields: velocity, momentum, divergence, vorticity, shear, smoothed versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmoflow.config.settings import choose_chunk
from cosmoflow.engine import USEFUL_CORES, Column, Engine, Resources, TaskGraph
from cosmoflow.errors import DataError
from cosmoflow.events import StageFinished, caution, noting
from cosmoflow.numerics.blocks import Block, grid_blocks, place
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.stages.derive.plan import BlockPlan, Work, check_work, plan_work
from cosmoflow.stages.derive.recipes import derive_block, derive_box, recipe_of
from cosmoflow.stages.derive.slabs import DerivedShards, SlabPlan, build_slabs, plan_slabs
from cosmoflow.stages.flows.stored import check_flows, identify_flows
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY, examine, format_share
from cosmoflow.stages.inputs.lineage import descent_of
from cosmoflow.stages.inputs.notes import input_notes
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.particle_counts import COUNT
from cosmoflow.stages.requests import count_workers
from cosmoflow.stages.run import (
    Plan,
    Progress,
    Run,
    claiming,
    memory_here,
    run_graph,
    start_engine,
)
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.fields import FieldStore, open_fields
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import begun_config, check_output, finish_group
from cosmoflow.storage.reopening import reopen_fields
from cosmoflow.storage.sampling import BACKGROUND, NEAREST, Sampling
from cosmoflow.storage.urls import absolute, open_group_for_writing

# xarray loads pandas, and only the result needs it.
if TYPE_CHECKING:
    import xarray as xr

Background = tuple[float, float, float]
"""Mean momentum over mean density of a box, km/s."""

_NO_BACKGROUND: Background = (0.0, 0.0, 0.0)

IN_MEMORY, IN_SLABS = "memory", "slabs"
"""Values of ``transforms`` in a provenance: the way in which a box was transformed."""


def plan_derive(fields: str, names: str | Sequence[str], run: Run) -> Plan:
    """Plan :func:`derive`."""
    store = FieldStore(fields)
    return _plan(store, check_work(store, names, run.settings.derive), run)


def _plan(
    store: FieldStore, work: Work, run: Run, begun: str | None = None
) -> BlockPlan | SlabPlan:
    """Plan the work: in slabs if it transforms a box that does not fit into one process.

    A resumed run transforms as it began, since the two ways differ by float32 rounding.
    """
    plan = plan_work(store, work, count_workers(run))
    fits = plan.worker_memory <= memory_here(run) and begun != IN_SLABS
    if begun == IN_MEMORY or not work.spectral or fits:
        return plan
    return plan_slabs(store, work, run) or plan


def derive(fields: str, out: str, names: str | Sequence[str], run: Run | None = None) -> xr.Dataset:
    """Derive fields from those of a store.

    Parameters
    ----------
    fields : str
        URL of a fields store: painted, predicted or derived.
    out : str
        URL of the fields store to write.
    names : str or sequence of str
        Field or fields to derive, among

        - ``velocity``, km/s: momentum over density, the mean flow where there is no mass;
        - ``momentum``, km/s: density times velocity;
        - ``divergence``, ``vorticity`` and ``velocity_shear`` (the eigenvalues of
          ``(d_i v_j + d_j v_i) / 2``, ascending) of the velocity, km/s/(Mpc/h);
        - ``count``: density times the mean number of particles in a cell, the number of particles
          on which the velocity of the cell rests;
        - ``smoothed_X``: the same derivatives of the Gaussian-smoothed velocity, or any other
          stored variable X smoothed.
    run : Run, optional
        Settings (section ``derive``), engine, progress.

    Returns
    -------
    xr.Dataset
        The fields, lazy.

    Raises
    ------
    DataError
        The store lacks a variable or is damaged.
    OutputExistsError, StorageError, ConfigError

    Notes
    -----
    By differences, every shard is a separate task, and the result is bitwise independent of the
    shards. Spectral derivatives are one task that holds the box; if the box does not fit into one
    process, they are filters between two transforms in slabs.
    """
    run, warned = run or Run(), list[str]()
    run = replace(run, listener=noting(run.listener, warned))
    fields, out = absolute(fields), absolute(out)
    check_output(out, run.existing, [fields])
    store = FieldStore(fields)
    work = check_work(store, names, run.settings.derive)
    check_contents(store, [name for name, _ in work.inputs], run)
    begun = begun_config(out).get("transforms") if run.existing == "resume" else None
    plan = _plan(store, work, run, begun)
    in_slabs = isinstance(plan, SlabPlan)
    config = {"derive": work.config.model_dump(mode="json"), "fields": list(work.names)}
    if work.spectral:
        config["transforms"] = IN_SLABS if in_slabs else IN_MEMORY
    flows = identify_flows(store, (name for name, _ in work.inputs))
    sampling, notes = _sampling(store, work, run)
    metadata = replace(
        store.metadata,
        provenance=make_provenance(
            "derive",
            config,
            {"fields": store.digest, **flows},
            sources={"fields": store.url},
            notes=[*input_notes({"fields": store}), *notes, *warned],
            facts=descent_of(store),
        ),
        redshift_space=painting_of(store).redshift_space,
        sampling=sampling,
    )
    # Before anything is written, so that a refused run leaves an older output unchanged.
    engine = start_engine(
        run,
        plan,
        remedy="fewer fields at once, or --method difference"
        if work.spectral
        else "a smaller derive.shard, fewer fields at once or a smaller radius",
        # Transforms of a box in memory are one task, which Ray cannot speed up.
        cpu_seconds=0.0 if work.spectral and not in_slabs else None,
    )
    blocks = grid_blocks(store.grid, work.shard)
    with claiming(out, run) as claim:
        finished = create_fields(
            out,
            metadata,
            store.grid,
            work.names,
            shard=work.shard,
            chunk=choose_chunk(work.shard),
            existing=run.existing,
            attributes={name: _attributes(name, work) for name in work.names},
        )
        todo = np.flatnonzero(~finished).tolist()
        digest = metadata.provenance["digest"]
        if todo and isinstance(plan, SlabPlan):
            _derive_slabs(plan, out, digest, todo, engine, run, claim)
        else:
            done = len(blocks) - len(todo)
            progress = Progress(run.listener, "derive", len(blocks), "shards", done, claim=claim)
            needs = Resources(memory=plan.worker_memory)
            if work.spectral:
                needs = engine.share(1, most=USEFUL_CORES, memory=plan.worker_memory)
            if todo:
                graph = _build_graph(work, out, digest, blocks, todo)
                engine.run(graph, lambda key, result: progress.advance(result), needs=needs)
        if not finished_shards(out).all():
            raise RuntimeError(f"{out}: the graph ended with unfinished shards")
        store.check_unchanged()
        check_flows(store, flows)
        claim.check()
        finish_group(open_group_for_writing(out))
    run.listener(StageFinished("derive", {"out": out, **plan.details}))
    return open_fields(out)


def _sampling(store: FieldStore, work: Work, run: Run) -> tuple[Sampling | None, list[str]]:
    """Return the sampling of the output and notes on its empty cells; warn about them."""
    sampling, names = store.metadata.sampling, set(work.names)
    notes = []
    if work.needs_background and sampling is not None:
        # A velocity derived from a momentum does not have the fill of the stored one.
        if sampling.fill == NEAREST:
            names.remove("velocity")
            if sampling.empty_share > MOST_EMPTY:
                notes.append(
                    f"{format_share(sampling.empty_share)} of the cells hold no mass, and the "
                    "derived velocity is the mean flow there, not that of the nearest particle: "
                    f"use the velocity that {store.url} holds"
                )
                caution(run.listener, notes[0])
        sampling = replace(sampling, fill=BACKGROUND)
    stores = [store] if any(FIELDS[name].filled for name in names) else []
    return sampling, [*notes, *examine(stores, run.listener)]


def _derive_slabs(
    plan: SlabPlan, out: str, digest: str, todo: list[int], engine: Engine, run: Run, claim: Claim
) -> None:
    work, background = plan.work, _NO_BACKGROUND
    if work.needs_background:
        first = TaskGraph()
        _add_background(first, work, grid_blocks(plan.grid, work.shard), output=True)
        background = engine.run(first)["background", 0]
    writer = DerivedShards(work, out, digest, background)
    graph = build_slabs(plan, writer, todo)
    run_graph(
        graph, engine, replace(plan, tasks=len(graph)), run, lambda key, result: claim.check()
    )


def _attributes(name: str, work: Work) -> dict[str, Any]:
    """Return the attributes of a variable, except its unit."""
    recipe = recipe_of(name)
    attributes: dict[str, Any] = {}
    if recipe.slopes:
        attributes["derivatives"] = work.config.method
    if recipe.smoothed:
        attributes["smoothing_radius"] = work.config.smoothing
    if name == COUNT:
        attributes["particles_per_cell"] = work.particles_per_cell
    return attributes


def _build_graph(
    work: Work, out: str, digest: str, blocks: list[Block], todo: list[int]
) -> TaskGraph:
    """Build the graph: the mean flow if needed, then one task per shard or one for the box."""
    graph = TaskGraph()
    if work.needs_background:
        _add_background(graph, work, blocks)
    task = (
        partial(derive_box_task, work, out, digest, todo)
        if work.spectral
        else partial(derive_task, work, out, digest, blocks)
    )

    def reads(number: int) -> list[Column]:
        return [Column("background")] if work.needs_background else []

    graph.add("derive", task, range(1) if work.spectral else todo, reads=reads, output=True)
    return graph


def _add_background(
    graph: TaskGraph, work: Work, blocks: list[Block], *, output: bool = False
) -> None:
    """Add the task ``("background", 0)``, which returns the mean flow, and its inputs."""
    graph.add("sum", partial(sum_task, work.fields, blocks), range(len(blocks)))
    graph.add(
        "background",
        partial(background_task, work.fields),
        reads=lambda number: [Column("sum")],
        output=output,
    )


def sum_task(fields: str, blocks: Sequence[Block], shard: int) -> tuple[ExactSum, ...]:
    """Return the sums of density and momenta x, y, z of a block, exact in any order of blocks."""
    store, block = reopen_fields(fields, "density", "momentum"), blocks[shard]
    momenta = (store.read_block("momentum", block, lead=(axis,)) for axis in range(3))
    density = store.read_block("density", block)
    return tuple(ExactSum.of(values) for values in (density, *momenta))


def background_task(fields: str, number: int, sums: Sequence[tuple[ExactSum, ...]]) -> Background:
    """Return mean momentum over mean density of the box, km/s.

    Raises
    ------
    DataError
        The box has no mass.
    """
    mass, x, y, z = (float(sum(column, ExactSum())) for column in zip(*sums, strict=True))
    if not mass > 0.0:
        raise DataError("the density has no mass", where=fields, value=mass, limit="above 0")
    return x / mass, y / mass, z / mass


def derive_task(
    work: Work,
    out: str,
    digest: str,
    blocks: Sequence[Block],
    shard: int,
    background: Sequence[Background] = (_NO_BACKGROUND,),
) -> int:
    """Derive and write one shard; return the number of shards, 1."""
    store = reopen_fields(work.fields, *(name for name, _ in work.inputs))
    block = blocks[shard]
    values = derive_block(
        store, block, work.names, work.config.smoothing, background[0], work.particles_per_cell
    )
    write_block(out, block, shard, values, digest=digest)
    return 1


def derive_box_task(
    work: Work,
    out: str,
    digest: str,
    todo: Sequence[int],
    number: int,
    background: Sequence[Background] = (_NO_BACKGROUND,),
) -> int:
    """Derive the whole box and write the shards in ``todo``; return their number."""
    store = FieldStore(work.fields)
    values = derive_box(
        store, work.names, work.config.smoothing, background[0], work.particles_per_cell
    )
    blocks, whole = grid_blocks(store.grid, work.shard), Block((0, 0, 0), (store.grid,) * 3)
    for shard in todo:
        part = {name: field[(..., *place(blocks[shard], whole))] for name, field in values.items()}
        write_block(out, blocks[shard], shard, part, digest=digest)
    return len(todo)
