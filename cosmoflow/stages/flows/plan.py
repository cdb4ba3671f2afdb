"""How a box is cut into slabs, and what transforming them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import block_bytes, cut_axis
from cosmoflow.numerics.wiener import POINTWISE
from cosmoflow.stages.run import Plan, Run, UntypedPlan
from cosmoflow.stages.slabs.plan import OVERHEAD, Sharded, least_thickness, memory_allowed

SLABS = 16
"""Least slabs that a box is cut into, unless they would be thinner than :data:`WANTED_PLANES`."""
WANTED_PLANES = 16
"""Planes that a slab has where memory allows: storage decodes whole chunks to read a plane."""
_BLOCKS = 24
"""Blocks of modes that a task has in hand while it transforms, filters and joins them."""
_ENCODING = 5.5
"""A shard as it is joined, and as it is encoded, in shards."""
_SECONDS_PER_NUMBER = 4e-8
"""Of a core, for each number that is handed on."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A box in slabs, and the fields that are made in them.

    Parameters
    ----------
    grid, shard : int
        Cells per axis of the grid, and of what one write covers.
    slabs : tuple of slice
        Along x, and along y as well.
    pointwise, squares : tuple of str
        Of :data:`cosmoflow.numerics.wiener.FIELDS`: what the density of each cell gives, and what
        takes transforms of the contrast.
    """

    grid: int
    shard: int
    slabs: tuple[slice, ...]
    pointwise: tuple[str, ...]
    squares: tuple[str, ...]

    @property
    def travelling(self) -> int:
        """How many fields y-slabs hand on for the squares."""
        return sum({"squared_contrast": 1, "squared_tide": 3}[name] for name in self.squares)

    @property
    def tasks(self) -> int:
        """How many tasks there are: passes over the slabs, and bars of shards."""
        passes = 5 if self.squares else 3
        return passes * len(self.slabs) + len(axis_blocks(self.grid, self.shard)) ** 2

    @property
    def parts(self) -> int:
        """How many parts the tasks hand on in all: slab to slab, and slabs to bars of shards."""
        squares = 1 + len(self.squares) if self.squares else 0
        count, bars = len(self.slabs), len(axis_blocks(self.grid, self.shard))
        return (len(self.pointwise) + squares + 1) * count**2 + count * bars

    @property
    def most(self) -> int:
        """How many fields a task holds of its slab, at most: real ones, or modes, as large."""
        # Planes are read into one array and held while their modes are made; a velocity has three
        # components.
        return max(3, 1 + len(self.pointwise), self.travelling)

    @property
    def exchanged(self) -> int:
        """Fields that tasks hand on, in all."""
        return len(self.pointwise) + self.travelling + len(self.squares) + 2 + 3


def cut_box(store: Sharded, fields: Sequence[str], thickness: int) -> Cut:
    """Cut a box into slabs of some planes, or a few less.

    Parameters
    ----------
    store : Sharded
        Of the density.
    fields : sequence of str
        Those that the source of the flow is made of.
    thickness : int
        Most planes of a slab.
    """
    shard = min(store.shard, store.grid)
    squares = tuple(name for name in fields if name not in POINTWISE)
    wanted = {*fields, "contrast"} if squares else set(fields)
    pointwise = tuple(name for name in POINTWISE if name in wanted)
    slabs = tuple(cut_axis(store.grid, shard, min(thickness, shard)))
    return Cut(store.grid, shard, slabs, pointwise, squares)


def plan_slabs(
    store: Sharded, fields: Sequence[str], run: Run, thickness: int | None
) -> tuple[Plan, Cut]:
    """Choose the slabs, and say what making a flow in them takes.

    Slabs are so thin that every core has the memory for one, but no thinner than makes sense: then
    workers need more, which the engine reserves, so that fewer of them run on a node.

    Parameters
    ----------
    store : Sharded
        Of the density.
    fields : sequence of str
        Those that the source of the flow is made of.
    run : Run
        Its session knows the memory, its settings may allow less.
    thickness : int, optional
        Most planes of a slab; none means what suits the memory.

    Returns
    -------
    plan : Plan
        Its ``worker_memory`` may be more than there is: :func:`start_engine` refuses it then.
    cut : Cut
        The slabs.
    """
    plane = block_bytes(store.grid)
    whole = cut_box(store, fields, store.grid)
    blocks = _BLOCKS * max(plane, BLOCK_BYTES_CPU)
    if thickness is None:
        # As much again lies in the object store, which may be no larger than a worker.
        fitting = (memory_allowed(run) - OVERHEAD - blocks) // (2 * whole.most * plane)
        wanted = min(fitting, max(store.grid // SLABS, WANTED_PLANES))
        # No slab lies in two shards, so one as thick as a shard is the thickest there is.
        least = least_thickness(
            min(store.shard, store.grid), lambda planes: cut_box(store, fields, planes).parts
        )
        thickness = max(least, wanted)
    cut = cut_box(store, fields, thickness)
    planes = max(slab.stop - slab.start for slab in cut.slabs)
    writing = round(_ENCODING * 12 * cut.shard**3)
    exchanged = cut.exchanged * plane * store.grid
    cells = store.grid**3
    plan = UntypedPlan(
        stage="flow",
        tasks=cut.tasks,
        unit="tasks",
        worker_memory=OVERHEAD + max(writing, blocks + cut.most * planes * plane),
        read=4 * cells,
        written=12 * cells,
        cpu_seconds=_SECONDS_PER_NUMBER * exchanged / 4,
        exchanged=exchanged,
        entries={"grid": store.grid, "slabs": len(cut.slabs), "planes": planes},
    )
    return plan, cut
