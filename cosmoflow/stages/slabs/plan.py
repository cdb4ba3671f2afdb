"""Cutting boxes into bars and slabs, for any computation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import GROUP, Bar, field_bytes, plane_bytes
from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.stages.costs import OVERHEAD
from cosmoflow.stages.run import Run, memory_of_worker
from cosmoflow.storage.metadata import StoredBox

SLABS = 16
"""Least slabs of a box, unless they would be thinner than :data:`GROUP` planes."""
NARROWEST = 8
"""Least cells of a bar along x and y where memory is short, in boxes with more cells."""
_CORES = (1, 2, 4, 8)
"""Numbers of cores that a task may have, whose memory it has then too."""
_SPANNED = ((4, 4), (4, 2), (2, 2), (2, 1))
"""Shards along x and y that a bar may span, the widest first."""
_ENCODING = 5.5
"""Memory of a shard while it is joined and encoded, in units of the shard."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A box and how it is stored.

    Parameters
    ----------
    cells : int
        Cells per axis.
    box_size : float
        Box size, Mpc/h.
    shard, chunk : int
        Cells per axis that one write covers, and that one read decodes.
    """

    cells: int
    box_size: float
    shard: int
    chunk: int

    @classmethod
    def of(cls, store: StoredBox, shard: int | None = None) -> Grid:
        """Return the grid of a store, or of an output with shards of another size."""
        shard = min(shard or store.shard, store.grid)
        return cls(store.grid, store.metadata.box_size, shard, min(store.chunk, shard))

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.box_size / self.cells

    @property
    def layers(self) -> int:
        """Number of shards along an axis."""
        return -(-self.cells // self.shard)


@dataclass(frozen=True, slots=True)
class Cut:
    """A box in bars, and its modes in slabs.

    Parameters
    ----------
    grid : Grid
        The box.
    x, y : tuple of slice
        Ranges of the bars along x and y; each lies within one shard, or is whole shards wide.
    slabs : tuple of slice
        Planes of modes along kz.
    """

    grid: Grid
    x: tuple[slice, ...]
    y: tuple[slice, ...]
    slabs: tuple[slice, ...]

    @classmethod
    def of(cls, grid: Grid, width: tuple[int, int], thickness: int) -> Cut:
        """Cut a box into bars of some width along x and y, and slabs of some planes."""
        planes = grid.cells // 2 + 1
        starts = list(range(0, planes, thickness))
        # A single plane, such as the Nyquist plane of 2^n cells, joins the slab before it.
        if len(starts) > 1 and thickness > 1 and planes - starts[-1] == 1:
            starts.pop()
        slabs = tuple(itertools.starmap(slice, itertools.pairwise([*starts, planes])))
        return cls(grid, _cut_axis(grid, width[0]), _cut_axis(grid, width[1]), slabs)

    @property
    def bars(self) -> list[Bar]:
        """The bars, in C order."""
        return [Bar(x, y) for x, y in itertools.product(self.x, self.y)]

    def bar(self, number: int) -> Bar:
        """Return a bar by its place among :attr:`bars`."""
        x, y = divmod(number, len(self.y))
        return Bar(self.x[x], self.y[y])

    @property
    def layers(self) -> int:
        """Number of shards along an axis."""
        return self.grid.layers

    @property
    def whole_shards(self) -> bool:
        """Whether bars are as wide as shards."""
        return len(self.x) == len(self.y) == self.layers

    @property
    def writing_tasks(self) -> int:
        """Number of tasks that make fields of bars and write them."""
        bars = len(self.x) * len(self.y)
        return bars if self.whole_shards else bars + self.layers**3

    def shard(self, number: int) -> Block:
        """Return the cells of a shard; shards are counted in C order."""
        size, rest = self.grid.shard, divmod(number, self.layers)
        x, y, z = (size * place for place in (*divmod(rest[0], self.layers), rest[1]))
        nx, ny, nz = (min(size, self.grid.cells - first) for first in (x, y, z))
        return Block((x, y, z), (nx, ny, nz))

    def bars_inside(self, column: int) -> list[int]:
        """Return the bars in a column of shards along z; columns are counted in C order."""
        shard, (across, along) = self.grid.shard, divmod(column, self.layers)
        x = [number for number, one in enumerate(self.x) if one.start // shard == across]
        y = [number for number, one in enumerate(self.y) if one.start // shard == along]
        return [i * len(self.y) + j for i, j in itertools.product(x, y)]


def _cut_axis(grid: Grid, width: int) -> tuple[slice, ...]:
    """Cut an axis into ranges that each lie within one shard."""
    return tuple(
        slice(origin + start, origin + start + size)
        for origin, length in axis_blocks(grid.cells, grid.shard)
        for start, size in axis_blocks(length, width)
    )


@dataclass(frozen=True, slots=True)
class Holding:
    """What the tasks of a transform hold in memory.

    Parameters
    ----------
    bar : float
        Numbers (of 4 bytes) for each cell of a bar, modes included.
    lines : float
        Additional numbers for each cell of the block of lines that a thread works on.
    slab : float
        Fields whose modes a task holds of its slab, what it is handed included.
    planes : float
        Additional blocks of planes that a thread works on.
    halo : int
        Cells around a bar that are read.
    written : int
        Numbers written per cell.
    """

    bar: float
    lines: float
    slab: float
    planes: float
    halo: int = 0
    written: int = 0

    def of_bar(self, grid: Grid, width: tuple[int, int], threads: int) -> int:
        """Return the bytes of a task of a bar."""
        a, b = (min(one, grid.cells) + 2 * self.halo for one in width)
        line = 4 * (grid.cells + 2)
        block = max(BLOCK_BYTES_CPU, line * b)
        return round(self.bar * line * a * b + self.lines * block * _pending(threads))

    def of_slab(self, grid: Grid, planes: int, threads: int) -> int:
        """Return the bytes of a task of a slab."""
        plane = plane_bytes(grid.cells)
        block = max(BLOCK_BYTES_CPU, plane)
        return round(self.slab * plane * planes + self.planes * block * _pending(threads))

    def of_shard(self, grid: Grid) -> int:
        """Return the bytes of a task that joins and writes a shard."""
        return round(_ENCODING * 4 * self.written * grid.shard**3)

    def most(self, cut: Cut, threads: int) -> int:
        """Return the bytes of a worker."""
        width = (
            max(one.stop - one.start for one in cut.x),
            max(one.stop - one.start for one in cut.y),
        )
        planes = max(one.stop - one.start for one in cut.slabs)
        bar = self.of_bar(cut.grid, width, threads)
        shard = self.of_shard(cut.grid)
        if cut.whole_shards:
            bar, shard = bar + shard, 0
        return OVERHEAD + max(bar, shard, self.of_slab(cut.grid, planes, threads))


def plan_cut(
    grid: Grid, run: Run, holding: Holding, thickness: int | None = None
) -> tuple[Cut, int, int]:
    """Cut a box into bars and slabs that suit the memory and the cores.

    Bars consist of whole chunks, unless memory is too short for bars one chunk wide. They are as
    wide as shards where memory allows and where there are enough of them for all cores. Bars of
    fields with a halo, which are read with all chunks around them, are as wide as shards unless
    memory is too short. If a core has not the memory for the least slab, or for such bars, a task
    has several cores; if there are more cores than tasks, too.

    Parameters
    ----------
    grid : Grid
        The box.
    run : Run
        The session knows the memory and the cores; the settings may allow less.
    holding : Holding
        What the tasks hold.
    thickness : int, optional
        Most planes of a slab, and most cells of a bar along x and y; by default chosen from the
        memory.

    Returns
    -------
    cut : Cut
        The bars and slabs.
    memory : int
        Bytes of a worker. If this exceeds the available memory, :func:`start_engine` refuses it.
    threads : int
        Threads of a worker.
    """
    planes = grid.cells // 2 + 1
    threads, room = 1, 0
    wanted = (grid.shard, grid.shard) if holding.halo else (grid.chunk, grid.chunk)
    cores = [one for one in _CORES if one <= planned_cores(run)]
    for width, count in itertools.product((wanted, _narrowest(grid)), cores):
        threads = max(count, least_threads(run))
        room = count * memory_of_worker(run) - OVERHEAD
        least = (
            holding.of_bar(grid, width, threads),
            holding.of_slab(grid, min(GROUP + 1, planes), threads),
            holding.of_shard(grid),
        )
        if room >= max(least):
            break
    if thickness is None:
        cpus = run.session.engine(0.0).cpus
        # One slab may have a plane more.
        fitting = int((room - holding.of_slab(grid, 1, threads)) / holding.of_slab(grid, 1, 0))
        thickness = min(fitting, planes // _wanted_slabs(cpus))
        thickness = max(GROUP, thickness // GROUP * GROUP)
        width = _choose_width(grid, holding, room, threads, _wanted_bars(cpus))
    else:
        width = (thickness, thickness)
    cut = Cut.of(grid, width, thickness)
    tasks = min(len(cut.bars), len(cut.slabs))
    threads = max(threads, share_threads(run, tasks, lambda more: holding.most(cut, more)))
    return cut, holding.most(cut, threads), threads


def widen_bars(cut: Cut, run: Run, holding: Holding, threads: int, sources: int) -> Cut:
    """Return bars that span several shards, with fewer chunks around them to read.

    This is for fields with a halo of which nothing is written. Bars stay as they are if a worker
    with so many threads lacks the memory for wider ones.

    Parameters
    ----------
    cut : Cut
        Bars and slabs of :func:`plan_cut`.
    run : Run
        The session knows the memory and the cores; the settings may allow less.
    holding : Holding
        What the tasks hold.
    threads : int
        Threads of a worker.
    sources : int
        Tasks of a bar.
    """
    grid = cut.grid
    if not cut.whole_shards:
        return cut
    room = memory_of_worker(run) * min(threads, planned_cores(run)) // 2
    room = max(room, holding.most(cut, threads))
    wanted = _wanted_bars(run.session.engine(0.0).cpus)
    for times in _SPANNED:
        x, y = (
            tuple(slice(low, low + size) for low, size in axis_blocks(grid.cells, one * grid.shard))
            for one in times
        )
        wide = replace(cut, x=x, y=y)
        if len(wide.bars) * sources >= wanted and holding.most(wide, threads) <= room:
            return wide
    return cut


def _wanted_bars(cpus: int) -> int:
    """Return the bars that some cores want: two a core, or two for 64 cores where there are many.

    On many nodes whole shards matter more than cores: requests and the network take longer than the
    transforms.
    """
    return max(min(2 * cpus, 64), cpus // 32)


def _wanted_slabs(cpus: int) -> int:
    """Return the slabs that some cores want: two a core, or one for several threads."""
    return max(SLABS, min(2 * cpus, 64), cpus // MOST_THREADS)


def _widths(grid: Grid) -> Iterator[tuple[int, int]]:
    """Yield the widths of bars along x and y, from that of shards to the narrowest.

    The chunks of a shard lie one after the other along z, then y: a bar that is narrower along x
    alone is still read in one piece from each shard.
    """
    x = y = grid.shard
    yield x, y
    for least in (grid.chunk, min(NARROWEST, grid.chunk)):
        while x > least:
            x = max(least, _half(x, least))
            yield x, y
        while y > least:
            y = max(least, _half(y, least))
            yield x, y


def _half(width: int, unit: int) -> int:
    """Return about half of a width, in whole units."""
    return -(-width // unit) // 2 * unit


def _narrowest(grid: Grid) -> tuple[int, int]:
    return list(_widths(grid))[-1]


def _choose_width(
    grid: Grid, holding: Holding, room: int, threads: int, wanted: int
) -> tuple[int, int]:
    """Return the widest bars that fit, and of which there are as many as wanted, if possible."""
    chosen = None
    for width in _widths(grid):
        whole = width == (grid.shard, grid.shard)
        writing = holding.of_shard(grid) if whole else 0
        if holding.of_bar(grid, width, threads) + writing > room:
            continue
        # More bars are not worth the chunks that several tasks would decode.
        if chosen is not None and (holding.halo or min(width) < grid.chunk):
            break
        chosen = width
        if len(_cut_axis(grid, width[0])) * len(_cut_axis(grid, width[1])) >= wanted:
            break
    return chosen or _narrowest(grid)


def exchanged_bytes(grid: Grid, modes: int, fields: int = 0, cut: Cut | None = None) -> int:
    """Return the bytes that tasks hand on: modes of some fields, and fields of narrow bars."""
    real = 0 if cut is None or cut.whole_shards else fields
    return modes * field_bytes(grid.cells) + real * 4 * grid.cells**3


def least_threads(run: Run) -> int:
    """Return the threads of a worker where there are enough tasks: one on Ray, else all."""
    engine = run.settings.engine
    if engine.choice == "ray" or engine.address is not None:
        return 1
    return min(run.session.engine(0.0).cpus, MOST_THREADS)


def _pending(threads: int) -> int:
    """Return how many blocks a task with some threads works on at once; see `map_ahead`."""
    return threads + (threads > 1)


def share_threads(run: Run, tasks: int, memory: Callable[[int], int]) -> int:
    """Return the threads of each of some tasks: several, if there are fewer tasks than cores.

    Parameters
    ----------
    run : Run
        The session knows the cores and the memory; the settings may allow less.
    tasks : int
        Tasks that can run side by side.
    memory : callable
        Maps a number of threads to the bytes of a worker.
    """
    engine, allowed = run.session.engine(0.0), run.settings.engine.memory
    room = engine.memory if allowed is None else min(int(allowed), engine.memory)
    if memory(1) > room:
        return 1
    threads = min(engine.share(tasks, most=1, memory=memory(1)).cpus, MOST_THREADS)
    return max((more for more in range(1, threads + 1) if memory(more) <= room), default=1)


def planned_cores(run: Run) -> int:
    """Return the most cores that a task can have: those of the smallest node on Ray, else one.

    A worker whose memory the settings limit has one core.
    """
    config = run.settings.engine
    if config.memory is not None or (config.choice != "ray" and config.address is None):
        return 1
    return run.session.engine(0.0).share(1, most=1, memory=0).cpus
