"""From particles to density, momentum and velocity on a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from cosmoflow.config.settings import PaintConfig
from cosmoflow.engine import Resources, TaskGraph
from cosmoflow.events import StageFinished
from cosmoflow.numerics.painting import SCHEME_ORDER
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.stages.painted import add_totals, bucket_task, paint_task, painted_variables
from cosmoflow.stages.run import Plan, Progress, Run, discarding_failures, start_engine
from cosmoflow.storage.fields import create_fields, finished_shards, open_fields
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.snapshots import ParticleSource, open_particles
from cosmoflow.storage.urls import absolute, open_group_for_writing
from cosmoflow.storage.variables import count_parts

PIECES = 16
"""Pieces that the particles are cut into, unless that makes them too small or too large.

Every piece hands something to almost every shard, and Ray takes a millisecond for each (measured).
"""
SMALLEST_PIECE, LARGEST_PIECE = 1 << 20, 1 << 24

_BYTES_PER_PARTICLE = 24
_BYTES_PER_MASS = 8
_PARTICLES_PER_SECOND = 5e6
_OVERHEAD = 160 << 20
"""Bytes of a worker that grow with nothing: buffers of the store, of threads, of malloc."""


def plan_paint(particles: str, run: Run) -> Plan:
    """Say what :func:`paint` would do."""
    return _plan(open_particles(particles, run.settings.snapshot), run)


def _plan(store: ParticleSource, run: Run) -> Plan:
    config = run.settings.paint
    shards = len(grid_blocks(config.grid, config.shard_cells))
    piece = _piece(store, config, run.settings.engine.memory)
    numbers = sum(count_parts(name) for name in painted_variables(config))
    row = _row_bytes(store)
    return Plan(
        stage="paint",
        tasks=len(store.ranges(piece)) + shards,
        unit="tasks",
        worker_memory=_OVERHEAD
        + max(round(_bucketing_bytes(store, config) * piece), _painting_bytes(store, config)),
        read=store.count * row,
        written=config.grid**3 * 4 * numbers,
        cpu_seconds=store.count / _PARTICLES_PER_SECOND,
        exchanged=round(store.count * row * _copies(config)),
        details={
            "particles": store.count,
            "particles_per_task": piece,
            "grid": config.grid,
            "shard": config.shard_cells,
            "shards": shards,
            "cell_size": store.metadata.box_size / config.grid,
        },
    )


def _row_bytes(store: ParticleSource) -> int:
    return _BYTES_PER_PARTICLE + _BYTES_PER_MASS * int(store.has_mass)


def _copies(config: PaintConfig) -> float:
    """Return how many shards a particle's cloud touches on average."""
    reach = SCHEME_ORDER[config.scheme] - 1 + int(config.interlaced)
    return float((1.0 + reach / config.shard_cells) ** 3)


def _bucketing_bytes(store: ParticleSource, config: PaintConfig) -> float:
    """Return the bytes that a bucketing task needs for each of its particles.

    It holds them as they were read, and as they are sorted.
    """
    return 2.0 * _row_bytes(store) * _copies(config)


def _painting_bytes(store: ParticleSource, config: PaintConfig) -> int:
    """Return the bytes that a painting task needs.

    It holds a sorted copy of its particles, some of them twice, its fields, and the shard of one of
    them as it is encoded; the particles themselves lie in the object store.
    """
    cells = config.shard_cells
    numbers = [count_parts(name) for name in painted_variables(config)]
    # What a crowded shard holds more than the mean one: an allowance that grows as shards shrink,
    # several times the scatter of the mass in cubes of this side, Mpc/h, at z = 0.
    side = store.metadata.box_size * cells / config.grid
    crowding = 1.0 + (30.0 / side) ** 1.2
    particles = store.count * (cells / config.grid) ** 3 * _copies(config) * crowding
    fields = 4 * cells**3 * (sum(numbers) + 2 * max(numbers))
    return int(1.5 * _row_bytes(store) * min(particles, store.count)) + fields


def _piece(store: ParticleSource, config: PaintConfig, allowed: int | None) -> int:
    """Return how many particles a bucketing task reads."""
    if config.particles_per_task is not None:
        return min(config.particles_per_task, store.count)
    piece = min(max(-(-store.count // PIECES), SMALLEST_PIECE), LARGEST_PIECE)
    if allowed is not None:
        piece = min(piece, int((allowed - _OVERHEAD) / _bucketing_bytes(store, config)))
    return min(max(piece, SMALLEST_PIECE), store.count)


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
        painted_variables(config),
        shard=config.shard_cells,
        chunk=config.chunk_cells,
        existing=run.existing,
    )
    todo = np.flatnonzero(~finished).tolist()
    progress = Progress(run.listener, "paint", len(blocks), "shards", len(blocks) - len(todo))
    if todo:
        graph = _build_graph(store, out, config, todo, plan.details["particles_per_task"])
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
    store: ParticleSource, out: str, config: PaintConfig, todo: list[int], piece: int
) -> TaskGraph:
    """Bucket every piece of the particles, add up the totals, paint every shard that is to do."""
    graph = TaskGraph()
    ranges = store.ranges(piece)
    buckets = [("bucket", index) for index in range(len(ranges))]
    size = store.metadata.box_size
    for bucket, (start, stop) in zip(buckets, ranges, strict=True):
        graph.add(
            bucket,
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
        *(graph.part(bucket, len(todo)) for bucket in buckets),
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
            *(graph.part(bucket, index) for bucket in buckets),
            output=True,
        )
    return graph
