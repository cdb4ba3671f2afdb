"""From particles to density, momentum and velocity on a grid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from cosmoflow.config.base import digest as digest_of
from cosmoflow.config.settings import PaintConfig
from cosmoflow.engine import Column, Engine, Key, TaskGraph
from cosmoflow.events import StageFinished, caution
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.stages.inputs.density import DENSITY_CHECKSUMS, checksum_densities
from cosmoflow.stages.inputs.empty_cells import caution_of, caution_of_plan
from cosmoflow.stages.inputs.lineage import descent_of
from cosmoflow.stages.inputs.mass_balance import check_mass
from cosmoflow.stages.inputs.notes import snapshot_config, tell_notes
from cosmoflow.stages.paint.plan import PaintPlan, make_plan
from cosmoflow.stages.paint.tasks import (
    BoxTotals,
    add_totals,
    bucket_task,
    paint_task,
    painted_variables,
    shards_near_piece,
)
from cosmoflow.stages.run import Progress, Run, claiming, make_exchange, start_engine
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.field_writing import create_fields, finished_shards
from cosmoflow.storage.fields import open_fields
from cosmoflow.storage.ledger import begin_counts, sum_counts
from cosmoflow.storage.metadata import SAMPLING, make_provenance, note_rms
from cosmoflow.storage.outputs import add_notes, check_output, finish_group
from cosmoflow.storage.sampling import Sampling
from cosmoflow.storage.snapshots import ParticleSource, open_particles
from cosmoflow.storage.urls import absolute, open_group, open_group_for_writing, storage_errors

TOTALS: Key = ("totals", 0)
"""Key of the task that adds up masses and momenta; its name is that of the attribute."""


def plan_paint(particles: str, run: Run) -> PaintPlan:
    """Return the plan of :func:`paint`."""
    store = open_particles(particles, run.settings.snapshot)
    if text := caution_of_plan(store.count, run.settings.paint):
        caution(run.listener, text)
    return make_plan(store, run)


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
        A particle is not finite or is outside the box, or the particles of a snapshot are not the
        matter of its cosmology.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    config = run.settings.paint
    particles, out = absolute(particles), absolute(out)
    check_output(out, run.existing, [particles])
    store = open_particles(particles, run.settings.snapshot)
    tell_notes(store, run.listener)
    plan = make_plan(store, run)
    # A refused run must leave an existing output as it is.
    engine = start_engine(run, plan, remedy="a smaller paint.shard or paint.particles_per_task")
    notes = list(store.metadata.provenance.get("notes", ()))
    if text := caution_of_plan(store.count, config):
        caution(run.listener, text)
        notes.append(text)
    blocks = grid_blocks(config.grid, config.shard_cells)
    metadata = replace(
        store.metadata,
        provenance=make_provenance(
            "paint",
            # How the particles are cut into tasks does not change the result.
            {
                "paint": config.model_dump(mode="json", exclude={"particles_per_task"}),
                **snapshot_config(store),
            },
            {"particles": store.digest},
            sources={"particles": particles},
            notes=notes,
            facts=descent_of(store),
        ),
        redshift_space=config.redshift_space,
    )
    with claiming(out, run) as claim:
        finished = create_fields(
            out,
            metadata,
            config.grid,
            painted_variables(config),
            shard=config.shard_cells,
            chunk=config.chunk_cells,
            existing=run.existing,
        )
        begin_counts(out, len(blocks))
        digest, todo = metadata.provenance["digest"], np.flatnonzero(~finished).tolist()
        _paint_shards(store, out, digest, todo, plan, engine, run, claim)
        if not finished_shards(out).all():
            raise RuntimeError(f"{out}: the graph ended with unfinished shards")
        store.check_unchanged()
        *counts, squares = sum_counts(out)
        empty, unfilled = (number / config.grid**3 for number in counts)
        sampling = Sampling(
            store.count / config.grid**3, empty, config.fill, unfilled, not store.has_mass
        )
        text = caution_of(sampling, config.grid) if "velocity" in config.fields else None
        checksums = checksum_densities(out)
        claim.check()
        if text:
            add_notes(out, [text])
        facts = {
            SAMPLING: sampling.to_attribute(),
            DENSITY_CHECKSUMS: checksums,
            **note_rms(squares, config.grid, config.fields),
        }
        finish_group(open_group_for_writing(out), facts)
    if text:
        caution(run.listener, text)
    summary = {"out": out, **plan.details, **sampling.to_attribute()}
    run.listener(StageFinished("paint", summary))
    return open_fields(out)


def _paint_shards(
    store: ParticleSource,
    out: str,
    digest: str,
    todo: list[int],
    plan: PaintPlan,
    engine: Engine,
    run: Run,
    claim: Claim,
) -> None:
    """Paint the shards ``todo`` of an output."""
    done = plan.shards - len(todo)
    progress = Progress(run.listener, "paint", plan.shards, "shards", done, claim=claim)
    if not todo:
        return
    totals, pieces = _read_totals(out), store.ranges(plan.particles_per_task)
    graph = _build_graph(store, out, digest, run.settings.paint, todo, pieces, totals)

    def note(key: Key, result: Any) -> None:
        if key == TOTALS:
            claim.check()
            check_mass(store, result[0], out, run.listener)
            _write_totals(out, result)
        else:
            progress.advance()

    # The parts of a piece depend on the output, and on how the particles are cut into pieces.
    name = digest_of([out, digest, pieces])
    exchange = make_exchange(run, plan, name)
    # Tasks use one core, and more where there are fewer tasks than cores.
    needs = engine.share(graph.width, most=1, memory=plan.worker_memory)
    engine.run(graph, note, needs=needs, exchange=exchange)


def _read_totals(out: str) -> BoxTotals | None:
    """Return the totals that an earlier run stored; None if there are none."""
    with storage_errors(out):
        noted: Any = open_group(out).attrs.get(TOTALS[0])
    return None if noted is None else (noted["mass"], *noted["momentum"])


def _write_totals(out: str, totals: BoxTotals) -> None:
    """Store the totals, so that a resumed run need not read all particles again."""
    mass, *momentum = totals
    group = open_group_for_writing(out)
    with storage_errors(out):
        group.attrs[TOTALS[0]] = {"mass": mass, "momentum": momentum}


def _build_graph(
    store: ParticleSource,
    out: str,
    digest: str,
    config: PaintConfig,
    todo: list[int],
    pieces: list[tuple[int, int]],
    totals: BoxTotals | None,
) -> TaskGraph:
    """Build the tasks that bucket the pieces, add up the totals and paint the missing shards.

    A shard reads only from the pieces that may touch it. If the totals are known, pieces that no
    missing shard reads from are not read at all.
    """
    graph, size = TaskGraph(), store.metadata.box_size
    near = _pieces_near(store, pieces, config, todo)

    def reads(shard: int) -> list[Column]:
        numbers = None if near is None else near[shard]
        mine = Column("bucket", shard, numbers, stream=True)
        return [mine, Column(TOTALS[0])] if totals is None else [mine]

    bucketing = partial(bucket_task, store, pieces, size, config)
    shards = len(grid_blocks(config.grid, config.shard_cells))
    graph.add("bucket", bucketing, range(len(pieces)), parts=shards)
    if totals is None:
        graph.add(TOTALS[0], add_totals, reads=lambda _: [Column("bucket")], output=True)
    painting = partial(paint_task, out, digest, store.count, size, config, totals)
    graph.add("paint", painting, todo, reads=reads, output=True)
    return graph


def _pieces_near(
    store: ParticleSource,
    pieces: list[tuple[int, int]],
    config: PaintConfig,
    todo: list[int],
) -> dict[int, NDArray[np.int32]] | None:
    """Return the pieces that may touch each shard; None if any piece may touch any shard."""
    if store.coverage(*pieces[0]) is None:
        return None
    near: dict[int, list[int]] = {shard: [] for shard in todo}
    for index, piece in enumerate(pieces):
        touched = np.flatnonzero(shards_near_piece(store, *piece, config)).tolist()
        for shard in near.keys() & touched:
            near[shard].append(index)
    return {shard: np.array(found, np.int32) for shard, found in near.items()}
