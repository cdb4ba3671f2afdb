"""Plans of power spectra: the bars and slabs of a box, and the cost of their transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cosmoflow.stages.costs import MOVE_NUMBER, SPECTRA_NUMBER
from cosmoflow.stages.inputs.readers import READING
from cosmoflow.stages.requests import OPENING, around, count_bars, count_cells, count_workers
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.slabs.plan import Cut, Grid, Holding, exchanged_bytes, plan_cut, widen_bars
from cosmoflow.stages.slabs.sources import Source, Variable
from cosmoflow.storage.requests import Requests, Shards

_BLOCKS = 4
"""Blocks of planes that a thread holds for each number that it processes."""


@dataclass(frozen=True)
class PowerPlan(Plan):
    """The plan of sums over the modes of a box.

    Parameters
    ----------
    grid : int
        Cells per axis.
    transforms : int
        Number of transformed fields; a vector counts three times.
    bars, slabs : int
        Number of bars and of slabs.
    cut : Cut
        The bars and slabs.
    handed : int
        Number of transformed fields; a vector counts once.
    """

    grid: int
    transforms: int
    bars: int
    slabs: int
    cut: Cut = field(repr=False)
    handed: int = field(repr=False)
    remedy: ClassVar[str] = "bars and slabs cannot be smaller: more memory for a worker"

    @property
    def parts(self) -> int:
        """Total parts that tasks hand on."""
        return self.handed * self.bars * self.slabs


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
    blocks: int | None = None,
    in_memory: bool = False,
) -> PowerPlan:
    """Cut the box for its spectra and estimate their cost.

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
        Most planes of a slab and cells of a bar; by default chosen from the memory.
    blocks : int, optional
        Blocks of planes that a thread holds; by default :data:`_BLOCKS` for each number.
    in_memory : bool
        Whether this process has the fields in memory, so that halos cost nothing to read.

    Returns
    -------
    PowerPlan
        If its ``worker_memory`` exceeds the available memory, :func:`start_engine` refuses it.
    """
    total = sum(source.components for source in sources)
    holding = Holding(
        # The fields while they are read; then with the modes that are handed on.
        bar=max(
            max(READING * one.numbers, one.held, one.numbers + one.components) for one in sources
        ),
        lines=max(_count_lines(source) for source in sources),
        slab=total,
        planes=blocks or _BLOCKS * total,
        halo=max(halo for source in sources for _, halo in source.reads),
    )
    cut, memory, threads = plan_cut(grid, run, holding, thickness)
    if holding.halo and thickness is None and not in_memory:
        cut = widen_bars(cut, run, holding, threads, len(sources))
        memory = holding.most(cut, threads)
    bars, slabs, cells = len(cut.bars), len(cut.slabs), grid.cells**3
    numbers = cells * sum(source.numbers for source in sources)
    again = _count_read(sources, grid, cut) - numbers
    return PowerPlan(
        stage=stage,
        tasks=len(sources) * bars + slabs,
        unit="tasks",
        worker_memory=memory,
        threads=threads,
        read=4 * (numbers + again),
        written=0,
        cpu_seconds=SPECTRA_NUMBER * cells * total + MOVE_NUMBER * again,
        exchanged=exchanged_bytes(grid, total),
        requests=_count_requests(sources, grid, cut, count_workers(run)),
        grid=grid.cells,
        transforms=total,
        bars=bars,
        slabs=slabs,
        cut=cut,
        handed=sum(source.transforms for source in sources),
    )


def _count_lines(source: Source) -> int:
    """Return the numbers for each cell of a block of lines: a field, its modes, and its rule's."""
    halo = max(halo for _, halo in source.reads)
    # Blocks are a few lines thick, so that a halo around them counts.
    around = (1 + 2 * halo) * (source.working + (source.numbers if halo else 0))
    return 2 * source.components // source.transforms + around


def _count_read(sources: Sequence[Source], grid: Grid, cut: Cut) -> int:
    """Return the numbers that are read: whole chunks, those around each bar included."""
    stored = Shards(grid.cells, grid.shard, grid.chunk)

    def cells(ranges: Sequence[slice], halo: int) -> int:
        read = (around(one.start, one.stop - one.start, halo, grid.cells) for one in ranges)
        return count_cells(read, stored)

    return grid.cells * sum(
        parts * cells(cut.x, halo) * cells(cut.y, halo)
        for source in sources
        for parts, halo in source.reads
    )


def _count_requests(sources: Sequence[Source], grid: Grid, cut: Cut, workers: int) -> Requests:
    """Return the requests of the tasks that read bars."""
    stored = Shards(grid.cells, grid.shard, grid.chunk)
    # In one process, readers of derived fields stay open.
    opened = sum(workers > 1 or isinstance(source, Variable) for source in sources)
    found = (count_bars(stored, source.reads, cut.x, cut.y, workers) for source in sources)
    return Requests(get=sum(found) + OPENING * opened * len(cut.bars))
