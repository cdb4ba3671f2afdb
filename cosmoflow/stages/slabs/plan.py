"""Cutting boxes into slabs, for any computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import block_bytes, cut_axis
from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.stages.costs import OVERHEAD
from cosmoflow.stages.run import Run, memory_of_worker
from cosmoflow.storage.metadata import StoredBox

LEAST_PLANES = 8
"""Least planes of a slab where memory is short: plans that still need more memory are refused."""
WANTED_PLANES = 16
"""Planes of a slab where memory allows: storage decodes whole chunks to read a plane."""
SLABS = 16
"""Least slabs of a box, unless they would be thinner than :data:`WANTED_PLANES`."""
_BLOCKS = 8
"""Blocks of modes that a task holds of each field while it multiplies and joins them."""
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


@dataclass(frozen=True, slots=True)
class Cut:
    """A box in slabs.

    Parameters
    ----------
    grid : Grid
        The box.
    planes, rows : tuple of slice
        The slabs along x, and along y.
    """

    grid: Grid
    planes: tuple[slice, ...]
    rows: tuple[slice, ...]


def shard_bars(grid: Grid) -> list[slice]:
    """Return the extents of shards along an axis; one task writes a bar of shards along z."""
    return [slice(start, start + size) for start, size in axis_blocks(grid.cells, grid.shard)]


def cut_alike(grid: Grid, thickness: int) -> Cut:
    """Cut a box along x and y into the same slabs, each within one shard."""
    slabs = tuple(cut_axis(grid.cells, grid.shard, min(thickness, grid.shard)))
    return Cut(grid, slabs, slabs)


def plan_cut(
    grid: Grid,
    run: Run,
    *,
    held: int,
    handled: int,
    written: int,
    thickness: int | None = None,
) -> tuple[Cut, int, int]:
    """Cut a box whose fields are transformed forward and back, and written in shards.

    Slabs are thin enough for every core to hold one, down to a least thickness. If that still
    exceeds the memory of a core, the engine reserves more per worker and runs fewer workers. If
    there are more cores than slabs, each task has several.

    Parameters
    ----------
    grid : Grid
        The box.
    run : Run
        The session knows the memory; the settings may allow less.
    held : int
        Most fields that a task holds of its slab: real ones, or modes, which are as large.
    handled : int
        Fields of which a task holds blocks of modes.
    written : int
        Numbers written per cell.
    thickness : int, optional
        Most planes of a slab; by default chosen from the memory.

    Returns
    -------
    cut : Cut
        The slabs.
    memory : int
        Bytes of a worker. If this exceeds the available memory, :func:`start_engine` refuses it.
    threads : int
        Threads of a worker.
    """
    plane = block_bytes(grid.cells)
    block: int = _BLOCKS * handled * max(plane, BLOCK_BYTES_CPU)
    if thickness is None:
        # A task that reads maps as much again.
        room = memory_of_worker(run) - OVERHEAD - block * pending(least_threads(run))
        fitting = room // (2 * held * plane)
        wanted = min(fitting, max(grid.cells // SLABS, WANTED_PLANES))
        thickness = max(LEAST_PLANES, wanted)
    cut = cut_alike(grid, thickness)
    planes: int = max(slab.stop - slab.start for slab in cut.planes)
    writing = round(_ENCODING * 4 * written * grid.shard**3)

    def memory(threads: int) -> int:
        return OVERHEAD + max(writing, block * pending(threads) + held * planes * plane)

    threads = share_threads(run, len(cut.planes), memory)
    return cut, memory(threads), threads


def least_threads(run: Run) -> int:
    """Return the threads of a worker where there are enough tasks: one on Ray, else all."""
    engine = run.settings.engine
    if engine.choice == "ray" or engine.address is not None:
        return 1
    return min(run.session.engine(0.0).cpus, MOST_THREADS)


def pending(threads: int) -> int:
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
