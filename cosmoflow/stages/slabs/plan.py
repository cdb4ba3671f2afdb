"""Cuts of boxes into slabs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import block_bytes, cut_axis
from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.stages.costs import OVERHEAD
from cosmoflow.stages.run import Run
from cosmoflow.storage.metadata import StoredBox

LEAST_PLANES = 8
"""Planes below which a slab is never cut for lack of memory: plans that need more are refused."""
MOST_PARTS = 200_000
"""Parts that tasks may hand on in all, where shards allow it: the driver keeps track of each.

They grow as the square of the number of slabs.
"""

WANTED_PLANES = 16
"""Planes that a slab has where memory allows: storage decodes whole chunks to read a plane."""
SLABS = 16
"""Least slabs of a box, unless they would be thinner than :data:`WANTED_PLANES`."""
_BLOCKS = 8
"""Blocks of modes that a task has in hand of each field while it multiplies and joins them."""
_ENCODING = 5.5
"""A shard as it is joined, and as it is encoded, in shards."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A box and how it is stored.

    Parameters
    ----------
    cells : int
        Cells per axis.
    box_size : float
        Mpc/h.
    shard, chunk : int
        Cells per axis that one write covers, and that one read needs.
    """

    cells: int
    box_size: float
    shard: int
    chunk: int

    @classmethod
    def of(cls, store: StoredBox, shard: int | None = None) -> Grid:
        """Return the grid of a store, or of an output with other shards."""
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
    """Return the shards along an axis: one task writes the bar of shards along z."""
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
    count_parts: Callable[[int], int],
    thickness: int | None = None,
) -> tuple[Cut, int]:
    """Cut a box whose fields are transformed there and back, and written in shards.

    Slabs are so thin that every core has the memory for one, but no thinner than makes sense. Then
    workers need more memory: the engine reserves it, and runs fewer of them on a node.

    Parameters
    ----------
    grid : Grid
        The box.
    run : Run
        Its session knows the memory, its settings may allow less.
    held : int
        Fields that a task holds of its slab at most: real ones, or modes, as large.
    handled : int
        Fields of which a task has blocks of modes in hand.
    written : int
        Numbers that are written for each cell.
    count_parts : callable
        From the number of slabs to the parts that tasks hand on in all.
    thickness : int, optional
        Most planes of a slab; none means what suits the memory.

    Returns
    -------
    cut : Cut
        The slabs.
    memory : int
        Bytes of a worker. It may be more than there is: :func:`start_engine` refuses it then.
    """
    plane = block_bytes(grid.cells)
    blocks = _BLOCKS * handled * max(plane, BLOCK_BYTES_CPU)
    if thickness is None:
        # The object store holds as much again, and may be no larger than a worker.
        fitting = (memory_allowed(run) - OVERHEAD - blocks) // (2 * held * plane)
        wanted = min(fitting, max(grid.cells // SLABS, WANTED_PLANES))
        # A slab is within one shard, so it is at most as thick as a shard.
        least = least_thickness(
            grid.shard, lambda planes: count_parts(len(cut_alike(grid, planes).planes))
        )
        thickness = max(least, wanted)
    cut = cut_alike(grid, thickness)
    planes = max(slab.stop - slab.start for slab in cut.planes)
    writing = round(_ENCODING * 4 * written * grid.shard**3)
    return cut, OVERHEAD + max(writing, blocks + held * planes * plane)


def memory_allowed(run: Run) -> int:
    """Return the bytes of a worker with which all cores can be at work, or what settings allow."""
    engine = run.session.engine(0.0)
    allowed = run.settings.engine.memory
    return engine.memory_per_core if allowed is None else min(int(allowed), engine.memory)


def least_thickness(thickest: int, count_parts: Callable[[int], int]) -> int:
    """Return the fewest planes of a slab that keep parts few enough.

    Parameters
    ----------
    thickest : int
        Planes of the thickest slab there can be.
    count_parts : callable
        From the planes of a slab to the parts that tasks hand on in all.

    Returns
    -------
    int
        From :data:`LEAST_PLANES` on.
    """
    for thickness in range(LEAST_PLANES, thickest):
        if count_parts(thickness) <= MOST_PARTS:
            return thickness
    return thickest


def planned_threads(run: Run) -> int:
    """Return the threads of a worker: one on Ray, whose tasks have a core each."""
    engine = run.settings.engine
    if engine.choice == "ray" or engine.address is not None:
        return 1
    return min(run.session.engine(0.0).cpus, MOST_THREADS)
