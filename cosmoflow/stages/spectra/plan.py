"""How a box is cut into slabs for its spectra, and what transforming them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import block_bytes, cut_axis
from cosmoflow.stages.run import Plan, Run, UntypedPlan
from cosmoflow.stages.slabs.plan import (
    OVERHEAD,
    Grid,
    least_thickness,
    memory_allowed,
    planned_threads,
)

ROWS = 8
"""Rows whose modes are summed together: slabs of rows begin with such a group, and so do sums."""
WANTED_PLANES = 16
"""Planes that a slab has at least where memory allows and chunks are thinner."""

_BLOCKS = 5
"""Blocks of a plane of modes that a thread has in hand of each number that it works on."""
_SECONDS_PER_NUMBER = 1.2e-8
"""Of a core, for each number that is transformed and summed."""


class Transformed(Protocol):
    """What a plan needs to know of a field, see :class:`cosmoflow.stages.spectra.power.Source`."""

    @property
    def components(self) -> int:
        """1, or 3 of a vector."""

    @property
    def held(self) -> float:
        """Numbers that a cell of a slab takes at most while its field is read and made."""


@dataclass(frozen=True, slots=True)
class PowerCut:
    """A box in slabs.

    Parameters
    ----------
    grid : Grid
        The box.
    planes, rows : tuple of slice
        Along x, and along y.
    """

    grid: Grid
    planes: tuple[slice, ...]
    rows: tuple[slice, ...]


def plan_power(
    sources: Sequence[Transformed],
    grid: Grid,
    run: Run,
    *,
    stage: str,
    thickness: int | None = None,
) -> tuple[Plan, PowerCut]:
    """Choose the slabs, and say what the spectra take.

    Slabs of planes are as thick as what one read needs where every core has the memory, so that
    nothing is decoded twice; slabs of rows are as thick as the rows of all fields may be.

    Parameters
    ----------
    sources : sequence of Transformed
        The fields.
    grid : Grid
        The box.
    run : Run
        Its session knows the memory, its settings may allow less.
    stage : str
        For people.
    thickness : int, optional
        Most planes, and rows, of a slab; none means what suits the memory.

    Returns
    -------
    plan : Plan
        Its ``worker_memory`` may be more than there is: :func:`start_engine` refuses it then.
    cut : PowerCut
        The slabs.
    """
    plane = block_bytes(grid.cells)
    total = sum(source.components for source in sources)
    # Of a slab of planes: what is read, and the modes that are handed on.
    most = max(source.held + source.components for source in sources)
    threads = planned_threads(run)
    jobs = threads + (threads > 1)
    blocks = _BLOCKS * jobs * max(total, 3) * max(plane, BLOCK_BYTES_CPU)
    room = memory_allowed(run) - OVERHEAD - blocks
    least = least_thickness(
        grid.cells, lambda planes: len(sources) * (-(-grid.cells // planes)) ** 2
    )
    if thickness is None:
        planes = max(least, min(int(room // (most * plane)), _wanted(grid.chunk)))
        # Rows of all fields are in the object store together, for each core a slab: half of what a
        # store of a worker's size has room for.
        rows = max(least, min(int(room // (2 * total * plane)), _wanted(grid.chunk)))
        rows = max(ROWS, rows // ROWS * ROWS)
    else:
        planes = rows = thickness
    cut = PowerCut(
        grid,
        tuple(cut_axis(grid.cells, grid.shard, min(planes, grid.shard))),
        # As many rows as may be, not equal shares: each slab begins with a group of rows.
        tuple(slice(first, first + count) for first, count in axis_blocks(grid.cells, rows)),
    )
    thickest = max(slab.stop - slab.start for slab in cut.planes)
    cells = grid.cells**3
    plan = UntypedPlan(
        stage=stage,
        tasks=len(sources) * len(cut.planes) + len(cut.rows),
        unit="slabs",
        worker_memory=OVERHEAD + blocks + round(most * thickest * plane),
        read=4 * cells * total,
        written=0,
        cpu_seconds=_SECONDS_PER_NUMBER * cells * total,
        exchanged=total * plane * grid.cells,
        entries={
            "grid": grid.cells,
            "transforms": total,
            "slabs": [len(cut.planes), len(cut.rows)],
        },
    )
    return plan, cut


def _wanted(chunk: int) -> int:
    """Return the planes of whole chunks, at least :data:`WANTED_PLANES`."""
    return chunk * max(1, -(-WANTED_PLANES // chunk))
