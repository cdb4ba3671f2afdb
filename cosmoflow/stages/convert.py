"""Conversion of a snapshot of another code to a particle store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cosmoflow.engine import Key, Resources, TaskGraph
from cosmoflow.errors import DataError
from cosmoflow.events import StageFinished
from cosmoflow.stages import costs
from cosmoflow.stages.inputs.lineage import descent_of
from cosmoflow.stages.inputs.mass_balance import check_mass
from cosmoflow.stages.inputs.notes import tell_notes
from cosmoflow.stages.run import Plan, Progress, Run, claiming, start_engine
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.particles import (
    ParticleStore,
    create_particles,
    shard_rows,
    unfinished_rows,
    write_shard,
)
from cosmoflow.storage.snapshots import ParticleSource, open_particles
from cosmoflow.storage.urls import (
    absolute,
    damage,
    open_group,
    open_group_for_writing,
    remove,
    storage_errors,
)

_BYTES_PER_PARTICLE = 24


@dataclass(frozen=True, kw_only=True)
class ConvertPlan(Plan):
    """Plan of `convert`.

    Parameters
    ----------
    particles : int
        Particles of the snapshot.
    box_size : float
        Side of the box, Mpc/h.
    redshift : float
        Redshift of the snapshot.
    """

    particles: int
    box_size: float
    redshift: float


def plan_convert(snapshot: str, run: Run) -> ConvertPlan:
    """Plan :func:`convert`."""
    return _plan(open_particles(snapshot, run.settings.snapshot))


def _plan(source: ParticleSource) -> ConvertPlan:
    row = _BYTES_PER_PARTICLE + 8 * int(source.has_mass)
    return ConvertPlan(
        stage="convert",
        tasks=-(-source.count // shard_rows(source.count)),
        unit="shards",
        # Rows in the file's own (double) precision, their conversion, and the encoded chunks.
        worker_memory=4 * row * min(source.count, shard_rows(source.count)),
        read=source.count * row,
        written=source.count * row,
        cpu_seconds=source.count * costs.CONVERT_PARTICLE,
        particles=source.count,
        box_size=source.metadata.box_size,
        redshift=source.metadata.redshift,
    )


def convert(snapshot: str, out: str, run: Run | None = None) -> ParticleStore:
    """Write the particles of a snapshot to a particle store, piece by piece.

    Painting also reads snapshots directly; a store pays off if the particles are painted several
    times, or moved to another place.

    Parameters
    ----------
    snapshot : str
        URL of a snapshot in any format that ``storage.snapshots`` reads.
    out : str
        URL of the store to write.
    run : Run, optional
        Settings (section ``snapshot``), engine, progress.

    Raises
    ------
    DataError
        The snapshot is damaged or contradicts its header, or its particles do not make up the
        matter of its cosmology.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    snapshot, out = absolute(snapshot), absolute(out)
    check_output(out, run.existing, [snapshot])
    source = open_particles(snapshot, run.settings.snapshot)
    tell_notes(source, run.listener)
    plan = _plan(source)
    engine = start_engine(run, plan, remedy="a worker with more memory")
    metadata = replace(
        source.metadata,
        provenance=make_provenance(
            "convert",
            run.settings.resolved("snapshot"),
            {"snapshot": source.digest},
            sources={"snapshot": source.url},
            notes=source.metadata.provenance.get("notes", ()),
            facts=descent_of(source),
        ),
    )
    with claiming(out, run) as claim:
        create_particles(
            out,
            source.count,
            metadata,
            run.existing,
            mass=source.has_mass,
            mass_unit=source.mass_unit,
        )
        todo = unfinished_rows(out)
        done = plan.tasks - len(todo)
        progress = Progress(run.listener, "convert", plan.tasks, "shards", done, claim=claim)
        graph = TaskGraph()
        rows = {shard: (start, stop) for shard, start, stop in todo}
        task = partial(convert_shard, source, out, metadata.provenance["digest"], rows)
        graph.add("convert", task, list(rows), output=True)
        needs = Resources(memory=plan.worker_memory)
        masses: dict[int, float] = {}

        def note(key: Key, result: Any) -> None:
            masses[int(key[1])] = result
            progress.advance()

        engine.run(graph, note, needs=needs)
        source.check_unchanged()
        total = _total_mass(source, out, masses)
        claim.check()
        try:
            check_mass(source, total, out, run.listener)
        except DataError:
            # A resumed run could not finish this output.
            remove(out)
            raise
        finish_group(open_group_for_writing(out))
    run.listener(StageFinished("convert", {"out": out, **plan.details}))
    return ParticleStore(out)


def convert_shard(
    source: ParticleSource, out: str, digest: str, rows: Mapping[int, tuple[int, int]], shard: int
) -> float:
    """Read and write the particles of one shard; return the sum of their masses, if they differ."""
    start, stop = rows[shard]
    particles = source.read(start, stop)
    write_shard(out, shard, start, particles, digest=digest)
    return 0.0 if particles.mass is None else float(particles.mass.sum())


def _total_mass(source: ParticleSource, out: str, masses: Mapping[int, float]) -> float:
    """Return the sum of individual masses; shards that an earlier run wrote are read again."""
    total = sum(masses.values())
    if not source.has_mass:
        return total
    column: Any = open_group(out)["mass"]
    rows = shard_rows(source.count)
    for shard in set(range(-(-source.count // rows))) - set(masses):
        with storage_errors(out), damage(f"{out}, mass"):
            found = np.asarray(column[shard * rows : (shard + 1) * rows])
        total += float(found.sum())
    return total
