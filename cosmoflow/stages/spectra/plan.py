"""Plans of power spectra: the slabs of a box, and the cost of their transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import block_bytes, cut_axis
from cosmoflow.stages.costs import OVERHEAD, SPECTRA_NUMBER
from cosmoflow.stages.requests import OPENING, count_planes, count_workers
from cosmoflow.stages.run import Plan, Run, memory_of_worker
from cosmoflow.stages.slabs.plan import (
    LEAST_PLANES,
    WANTED_PLANES,
    Cut,
    Grid,
    least_threads,
    pending,
    planned_cores,
    share_threads,
)
from cosmoflow.stages.slabs.sources import Source, Variable
from cosmoflow.storage.requests import Requests, Shards

ROWS = 8
"""Rows whose modes are summed as one group: slabs of rows start with a whole group."""

_BLOCKS = 5
"""Blocks of a plane of modes that a thread holds for each number that it processes."""

_CORES = (1, 2, 4, 8)
"""Numbers of cores that a task may have, whose memory it has then too."""


@dataclass(frozen=True)
class PowerPlan(Plan):
    """The plan of sums over the modes of a box.

    Parameters
    ----------
    grid : int
        Cells per axis.
    transforms : int
        Number of transformed fields; a vector counts three times.
    slabs : list of int
        Number of slabs of planes and of rows.
    cut : Cut
        The slabs.
    handed : int
        Number of transformed fields; a vector counts once.
    """

    grid: int
    transforms: int
    slabs: list[int]
    cut: Cut = field(repr=False)
    handed: int = field(repr=False)
    remedy: ClassVar[str] = "thinner slabs are not possible: more memory for a worker"

    @property
    def parts(self) -> int:
        """Total parts that tasks hand on."""
        return self.handed * len(self.cut.planes) * len(self.cut.rows)


@dataclass(frozen=True)
class SpectraPlan(PowerPlan):
    """The plan of the spectra of a box.

    Parameters
    ----------
    bins : int
        Number of bins of k.
    fields : list of str
        The fields whose spectra are measured.
    """

    bins: int
    fields: list[str]


def plan_power(
    sources: Sequence[Source],
    grid: Grid,
    run: Run,
    *,
    stage: str,
    thickness: int | None = None,
    held: int | None = None,
) -> PowerPlan:
    """Choose the slabs of the spectra and estimate their cost.

    Where every core has the memory, slabs of planes are as thick as whole chunks, so that nothing
    is decoded twice. Slabs of rows are as thick as the memory for the rows of all fields allows.
    Where a core has not the memory for the thinnest slabs, a task has several cores.

    Parameters
    ----------
    sources : sequence of Source
        The fields.
    grid : Grid
        The box.
    run : Run
        The session knows the memory; the settings may allow less.
    stage : str
        Name of the stage, for messages.
    thickness : int, optional
        Most planes, and rows, of a slab; by default chosen from the memory.
    held : int, optional
        Numbers whose modes a thread processes at a time; by default those of all fields.

    Returns
    -------
    PowerPlan
        If its ``worker_memory`` exceeds the available memory, :func:`start_engine` refuses it.
    """
    plane = block_bytes(grid.cells)
    total = sum(source.components for source in sources)
    # For a slab of planes: the fields that are read, and the modes that are handed on.
    most = max(source.held + source.components for source in sources)
    # For a block of planes: a field, its modes, and what the rule of the field needs.
    made = max(2 * source.components // source.transforms + source.working for source in sources)
    block: int = max(plane, BLOCK_BYTES_CPU)

    def reading(threads: int) -> int:
        return made * pending(threads) * block

    def summing(threads: int) -> int:
        return _BLOCKS * pending(threads) * max(held or total, 3) * block

    threads, room = 1, 0
    for cores in (one for one in _CORES if one <= planned_cores(run)):
        threads = max(cores, least_threads(run))
        room = cores * memory_of_worker(run) - OVERHEAD
        planes = LEAST_PLANES * most * plane + reading(threads)
        if room >= max(planes, ROWS * total * plane + summing(threads)):
            break
    if thickness is None:
        # Whole chunks, at least WANTED_PLANES.
        wanted = grid.chunk * max(1, -(-WANTED_PLANES // grid.chunk))
        planes = max(LEAST_PLANES, min(int((room - reading(threads)) // (most * plane)), wanted))
        # A task has the rows of all fields together, and reads them into memory.
        rows = max(LEAST_PLANES, min(int((room - summing(threads)) // (2 * total * plane)), wanted))
        rows = max(ROWS, rows // ROWS * ROWS)
    else:
        planes = rows = thickness
    cut = Cut(
        grid,
        tuple(cut_axis(grid.cells, grid.shard, min(planes, grid.shard))),
        # As many rows as possible, not equal shares, so that each slab starts with a group of rows.
        tuple(slice(first, first + count) for first, count in axis_blocks(grid.cells, rows)),
    )
    thickest: int = max(slab.stop - slab.start for slab in cut.planes)
    widest: int = max(slab.stop - slab.start for slab in cut.rows)
    cells = grid.cells**3

    def memory(threads: int) -> int:
        planes = most * thickest * plane + reading(threads)
        return OVERHEAD + round(max(planes, total * widest * plane + summing(threads)))

    tasks = min(len(cut.planes), len(cut.rows))
    threads = max(threads, share_threads(run, tasks, memory))
    return PowerPlan(
        stage=stage,
        tasks=len(sources) * len(cut.planes) + len(cut.rows),
        unit="slabs",
        worker_memory=memory(threads),
        threads=threads,
        read=4 * cells * sum(source.numbers for source in sources),
        written=0,
        cpu_seconds=SPECTRA_NUMBER * cells * total,
        exchanged=total * plane * grid.cells,
        requests=_count_requests(sources, grid, cut, count_workers(run)),
        grid=grid.cells,
        transforms=total,
        slabs=[len(cut.planes), len(cut.rows)],
        cut=cut,
        handed=sum(source.transforms for source in sources),
    )


def _count_requests(sources: Sequence[Source], grid: Grid, cut: Cut, workers: int) -> Requests:
    """Return the requests of the tasks that read planes."""
    stored = Shards(grid.cells, grid.shard, grid.chunk)
    # In one process, readers of derived fields stay open.
    opened = sum(workers > 1 or isinstance(source, Variable) for source in sources)
    found = (count_planes(stored, source.reads, cut.planes, workers) for source in sources)
    return Requests(get=sum(found) + OPENING * opened * len(cut.planes))
