"""From particles to density, momentum and velocity on a grid."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from cosmoflow.config.settings import PaintConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.engine import Resources, TaskGraph
from cosmoflow.errors import DataError
from cosmoflow.events import StageFinished
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.painting import BlockSums, bucket_particles
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.stages.run import Plan, Progress, Run, discarding_failures, start_engine
from cosmoflow.storage.fields import (
    create_fields,
    finished_shards,
    open_fields,
    write_block,
)
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.particles import Particles
from cosmoflow.storage.snapshots import ParticleSource, open_particles
from cosmoflow.storage.urls import absolute, open_group_for_writing
from cosmoflow.units import COMPONENTS, H0_KM_S_PER_MPC_H

VARIABLES = ("density", "momentum", "velocity")
_BYTES_PER_PARTICLE = 24
_PARTICLES_PER_SECOND = 3e6

Totals = tuple[ExactSum, ...]
"""Sum of masses, then of momenta x, y, z."""


def plan_paint(particles: str, run: Run) -> Plan:
    """Say what :func:`paint` would do."""
    return _plan(open_particles(particles, run.settings.snapshot), run)


def _plan(store: ParticleSource, run: Run) -> Plan:
    config = run.settings.paint
    shards = len(grid_blocks(config.grid, config.shard_cells))
    share = min(store.count, config.particles_per_task)
    fields = 7 * 4
    return Plan(
        stage="paint",
        tasks=len(store.ranges(config.particles_per_task)) + shards,
        unit="tasks",
        # A bucketing task holds its particles, their indices and their sorted copy; a painting task
        # its shard's int64 sums and the float64 and float32 fields made of them.
        worker_memory=max(
            share * (2 * _BYTES_PER_PARTICLE + 16), config.shard_cells**3 * (4 * 8 + 7 * 12)
        ),
        read=store.count * _BYTES_PER_PARTICLE,
        written=config.grid**3 * fields,
        cpu_seconds=store.count / _PARTICLES_PER_SECOND,
        details={
            "particles": store.count,
            "grid": config.grid,
            "shard": config.shard_cells,
            "shards": shards,
            "cell_size": store.metadata.box_size / config.grid,
        },
    )


def paint(particles: str, out: str, run: Run | None = None) -> xr.Dataset:
    """Assign particles to a grid.

    Parameters
    ----------
    particles : str
        URL of a particle store, or of a snapshot of another code.
    out : str
        URL of the fields store to write.
    run : Run, optional
        Settings (section ``paint``), engine, progress.

    Returns
    -------
    xr.Dataset
        ``density`` (over its mean), ``momentum`` and ``velocity`` (km/s), lazy.

    Raises
    ------
    DataError
        A particle is not finite or lies outside the box.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    config = run.settings.paint
    particles, out = absolute(particles), absolute(out)
    check_output(out, run.existing, [particles])
    store = open_particles(particles, run.settings.snapshot)
    plan = _plan(store, run)
    blocks = grid_blocks(config.grid, config.shard_cells)
    metadata = replace(
        store.metadata,
        provenance=make_provenance(
            "paint",
            # How the particles are cut into tasks does not change the result.
            {"paint": config.model_dump(mode="json", exclude={"particles_per_task"})},
            {"particles": store.digest},
        ),
    )
    finished = create_fields(
        out,
        metadata,
        config.grid,
        VARIABLES,
        shard=config.shard_cells,
        chunk=config.chunk_cells,
        existing=run.existing,
    )
    todo = np.flatnonzero(~finished).tolist()
    progress = Progress(run.listener, "paint", len(blocks), "shards", len(blocks) - len(todo))
    if todo:
        graph = _build_graph(store, out, config, todo)
        with discarding_failures(out, begun_before=run.existing == "resume"):
            engine = start_engine(
                run, plan, remedy="a smaller paint.shard or paint.particles_per_task"
            )
            needs = Resources(memory=plan.worker_memory)
            engine.run(graph, lambda key, result: progress.advance(), needs=needs)
    if not finished_shards(out).all():
        raise RuntimeError(f"{out}: the graph ended with unfinished shards")
    finish_group(open_group_for_writing(out))
    run.listener(StageFinished("paint", {"out": out, **plan.details}))
    return open_fields(out)


def _build_graph(
    store: ParticleSource, out: str, config: PaintConfig, todo: list[int]
) -> TaskGraph:
    """Bucket every piece of the particles, add up the totals, paint every shard that is to do."""
    graph = TaskGraph()
    ranges = store.ranges(config.particles_per_task)
    size = store.metadata.box_size
    for piece, (start, stop) in enumerate(ranges):
        graph.add(
            ("bucket", piece),
            bucket_task,
            store,
            start,
            stop,
            size,
            config,
            todo,
            parts=len(todo) + 1,
        )
    graph.add(
        ("totals", 0),
        add_totals,
        *(graph.part(("bucket", piece), len(todo)) for piece in range(len(ranges))),
    )
    for index, shard in enumerate(todo):
        graph.add(
            ("paint", shard),
            paint_task,
            out,
            shard,
            store.count,
            size,
            config,
            graph.result(("totals", 0)),
            *(graph.part(("bucket", piece), index) for piece in range(len(ranges))),
            output=True,
        )
    return graph


def bucket_task(
    store: ParticleSource,
    start: int,
    stop: int,
    box_size: float,
    config: PaintConfig,
    todo: list[int],
) -> list[Any]:
    """Read a range of particles; return those of each wanted shard, and the totals of all."""
    particles = store.read(start, stop)
    if config.redshift_space is not None:
        particles = _in_redshift_space(particles, store.metadata, config.redshift_space)
    buckets = bucket_particles(
        particles.position, config.grid, box_size, config.shard_cells, config.scheme
    )
    mass = particles.mass
    parts: list[Any] = [
        Particles(
            particles.position[buckets[shard]],
            particles.velocity[buckets[shard]],
            None if mass is None else mass[buckets[shard]],
        )
        for shard in todo
    ]
    return [*parts, _totals(particles)]


def _in_redshift_space(particles: Particles, metadata: BoxMetadata, axis: str) -> Particles:
    """Move particles to where their redshifts put them, ``s = x + v / (a H)`` along one axis."""
    background, a = Background(metadata.cosmology), metadata.scale_factor
    column, size = COMPONENTS.index(axis), metadata.box_size
    rate = a * H0_KM_S_PER_MPC_H * background.hubble_ratio(a)
    position = particles.position.copy()
    moved = position[:, column] + particles.velocity[:, column].astype(np.float64) / rate
    position[:, column] = moved % size
    # Just below the side rounds to it, which is the same place as 0.
    position[position[:, column] >= np.float32(size), column] = 0.0
    return replace(particles, position=position)


def _totals(particles: Particles) -> Totals:
    """Add up masses (1 each if there are none) and momenta, exactly: no order of them matters."""
    mass, velocity = particles.mass, particles.velocity.T.astype(np.float64)
    if mass is None:
        return (ExactSum(Fraction(len(particles.position))), *map(ExactSum.of, velocity))
    return (ExactSum.of(mass), *(ExactSum.of(component * mass) for component in velocity))


def add_totals(*totals: Totals) -> tuple[float, float, float, float]:
    """Add up the totals of all pieces.

    Raises
    ------
    DataError
        The particles have no mass.
    """
    mass, *momentum = (float(sum(column, ExactSum())) for column in zip(*totals, strict=True))
    if not mass > 0.0:
        raise DataError("the particles have no mass", value=mass, limit="above 0")
    x, y, z = momentum
    return mass, x, y, z


def paint_task(
    out: str,
    shard: int,
    count: int,
    box_size: float,
    config: PaintConfig,
    totals: tuple[float, float, float, float],
    *buckets: Particles,
) -> int:
    """Paint one shard from its own particles and write it."""
    block = grid_blocks(config.grid, config.shard_cells)[shard]
    sums = BlockSums(block, config.grid, box_size, config.scheme)
    mean_mass = totals[0] / count
    for bucket in buckets:
        mass = None if bucket.mass is None else bucket.mass / mean_mass
        sums.add(bucket.position, bucket.velocity, mass)
    fields = sums.fields(count, np.array(totals[1:]) / totals[0])
    write_block(
        out,
        block,
        shard,
        {"density": fields.density, "momentum": fields.momentum, "velocity": fields.velocity},
    )
    return shard
