"""Plan of `paint`: pieces of the particles, memory, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from cosmoflow.config.settings import PaintConfig
from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.painting import SCHEME_ORDER, batch_size
from cosmoflow.stages import costs
from cosmoflow.stages.inputs.expansion import hubble_rate
from cosmoflow.stages.paint.tasks import Counted, painted_variables, reach_of
from cosmoflow.stages.requests import ONCE
from cosmoflow.stages.run import Plan, Run, memory_of_worker
from cosmoflow.storage.particles import ROWS_PER_CHUNK, shard_rows
from cosmoflow.storage.requests import Requests, count_rows, count_writes
from cosmoflow.storage.variables import count_parts

SMALLEST_PIECE, LARGEST_PIECE = 1 << 20, 1 << 25
"""Particles of a piece, which may be as small as a shard of a store of particles. The largest is
halved where a core has not the memory for it, 1.7 GB."""
MOST_PIECES = 8192
"""Pieces become larger before there are more of them: each is a task for the driver."""
PARTICLES_OF_PART = 3500
"""Particles that a piece should hand to each shard on average, if none is known to be far away.

They take 0.5 ms to bucket and to paint, beside which a part takes little (``costs.PART_SECONDS``).
"""

_BYTES_PER_PARTICLE = 24
_BYTES_PER_MASS = 8


@dataclass(frozen=True, kw_only=True)
class PaintPlan(Plan):
    """Plan of `paint`.

    Parameters
    ----------
    particles, particles_per_task : int
        Number of particles in all, and in a piece that one task reads.
    grid, shard : int
        Cells per axis of the grid and of a shard.
    shards : int
        Shards of the grid.
    cell_size : float
        Side of a cell, Mpc/h.
    particles_per_cell : float
        Mean number of particles in a cell.
    """

    particles: int
    particles_per_task: int
    grid: int
    shard: int
    shards: int
    cell_size: float
    particles_per_cell: float


def make_plan(store: Counted, run: Run) -> PaintPlan:
    """Make the plan of painting.

    Raises
    ------
    DataError
        Redshift space is requested, but the expansion of the box is not known.
    """
    config = run.settings.paint
    if config.redshift_space is not None:
        # Refuse here rather than in a task on a worker.
        hubble_rate(store.metadata)
    shards = len(axis_blocks(config.grid, config.shard_cells)) ** 3
    piece = _piece(store, config, run)
    numbers = sum(count_parts(name) for name in painted_variables(config))
    row, copies = _row_bytes(store), _copies(store, config)
    kernel = costs.PAINT_PARTICLE * costs.SCHEME_COST[config.scheme] * (1 + config.interlaced)
    particle = costs.READ_PARTICLE + copies * (costs.SORT_PARTICLE + kernel)
    return PaintPlan(
        stage="paint",
        tasks=len(store.ranges(piece)) + shards,
        unit="tasks",
        worker_memory=costs.OVERHEAD
        + max(round(_bucketing_bytes(store, config) * piece), _painting_bytes(store, config)),
        read=store.count * row,
        written=config.grid**3 * 4 * numbers,
        cpu_seconds=store.count * particle + config.grid**3 * numbers * costs.WRITE_NUMBER,
        exchanged=round(store.count * row * copies),
        requests=_count_requests(store, config, piece, shards),
        particles=store.count,
        particles_per_task=piece,
        grid=config.grid,
        shard=config.shard_cells,
        shards=shards,
        cell_size=store.metadata.box_size / config.grid,
        particles_per_cell=store.count / config.grid**3,
    )


def _count_requests(store: Counted, config: PaintConfig, piece: int, shards: int) -> Requests:
    """Return the requests of painting a particle store that cosmoflow wrote."""
    pieces = store.ranges(piece)
    rows = shard_rows(store.count)
    widths = [12, 12, *[8] * store.has_mass]
    reads = sum(count_rows(pieces, rows, ROWS_PER_CHUNK, width) for width in widths)
    # The driver asks every shard once where its particles are.
    reads += -(-store.count // rows)
    # Beside the fields of a shard, the number of its empty cells: the group and the array are read
    # before it is written, and it is read at the end.
    each = count_writes(len(painted_variables(config))) + Requests(put=1, get=3)
    return Requests(get=reads) + each * shards + ONCE["paint"]


def _row_bytes(store: Counted) -> int:
    return _BYTES_PER_PARTICLE + _BYTES_PER_MASS * int(store.has_mass)


def _copies(store: Counted, config: PaintConfig) -> float:
    """Return the mean number of shards that get a particle."""
    if config.shard_cells == config.grid:
        return 1.0
    span = SCHEME_ORDER[config.scheme] - 1 + int(config.interlaced)
    if reach := reach_of(config, store.count):
        span = 2 * (reach + 1)
    along_axis = min(1.0 + span / config.shard_cells, -(-config.grid // config.shard_cells))
    return float(along_axis**3)


def _bucketing_bytes(store: Counted, config: PaintConfig) -> float:
    """Return the bytes that a bucketing task needs for each of its particles.

    It holds the particles as they were read, and a copy sorted by shard.
    """
    return 2.0 * _row_bytes(store) * _copies(store, config)


def _painting_bytes(store: Counted, config: PaintConfig) -> int:
    """Return the bytes that a painting task needs, however many particles its shard has.

    It holds a sorted copy of a batch of particles, some of them twice, and either the sums of
    several batches or the fields; then all fields, and one of them as it is encoded. The particles
    themselves are mapped from files. To fill empty cells it lists the particles cell by cell, in
    place of the sorted copy.
    """
    cells = config.shard_cells**3
    names = painted_variables(config)
    numbers = [count_parts(name) for name in names]
    batch = min(batch_size(cells), store.count)
    copy = round(1.5 * _row_bytes(store) * batch)
    fields = 4 * cells * (sum(numbers) + int("density" not in names))
    moving = set(config.fields) != {"density"}
    sums = 8 * cells * (4 if moving else 1) * (1 + int(config.interlaced))
    if batch == store.count:
        sums = 0
    if reach := reach_of(config, store.count):
        # Where the particles of every cell begin; then which cells are empty, a mask of these, and
        # the nearest particle of each.
        around = 8 * min(config.shard_cells + 2 * reach, config.grid) ** 3
        copy = max(copy, (_row_bytes(store) + 8) * batch + 2 * around + 30 * cells)
    return max(copy + max(sums, fields), sums + fields, fields + 8 * max(numbers) * cells)


def _piece(store: Counted, config: PaintConfig, run: Run) -> int:
    """Return how many particles a bucketing task reads."""
    if config.particles_per_task is not None:
        return min(config.particles_per_task, store.count)
    shards = len(axis_blocks(config.grid, config.shard_cells)) ** 3
    least = max(PARTICLES_OF_PART * shards, -(-store.count // MOST_PIECES), SMALLEST_PIECE)
    fitting = int((memory_of_worker(run) - costs.OVERHEAD) / _bucketing_bytes(store, config))
    piece = min(least, LARGEST_PIECE if fitting >= LARGEST_PIECE else LARGEST_PIECE // 2)
    if run.settings.engine.memory is not None:
        piece = min(piece, fitting)
    return min(max(piece, SMALLEST_PIECE), store.count)
