"""Plans of global flows in slabs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cosmoflow.numerics.slabs import block_bytes
from cosmoflow.numerics.wiener import POINTWISE
from cosmoflow.stages.costs import FLOW_NUMBER
from cosmoflow.stages.requests import OPENING, count_planes, count_workers, stored_shards
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.slabs.plan import Cut, Grid, plan_cut, shard_bars
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.requests import Requests, Shards, count_reads

WRITING = Requests(put=1, get=2)
"""Requests that write one shard: the metadata of the group and of the flow are read before."""

_TRAVELLING = {"squared_contrast": 1, "squared_tide": 3}


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that make up the source of a flow.

    Parameters
    ----------
    pointwise, squares : tuple of str
        Names in :data:`cosmoflow.numerics.wiener.FIELDS`: fields that depend on the density of the
        same cell only, and fields that need transforms of the contrast.
    """

    pointwise: tuple[str, ...]
    squares: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Fields:
        """Return the fields of a source, with the contrast if squares are among them."""
        squares = tuple(name for name in names if name not in POINTWISE)
        wanted = {*names, "contrast"} if squares else set(names)
        return cls(tuple(name for name in POINTWISE if name in wanted), squares)

    @property
    def travelling(self) -> int:
        """Number of products that y-slabs hand on for the squares."""
        return sum(_TRAVELLING[name] for name in self.squares)

    @property
    def held(self) -> int:
        """Most fields that a task holds of its slab: real ones, or modes, which are as large."""
        # Planes are read into one array and held while their modes are made; a velocity has three
        # components.
        return max(3, 1 + len(self.pointwise), self.travelling)

    @property
    def exchanged(self) -> int:
        """Total fields that tasks hand on."""
        return len(self.pointwise) + self.travelling + len(self.squares) + 2 + 3

    def count_tasks(self, slabs: int, bars: int) -> int:
        """Return the number of tasks: one per slab in each pass, and one per bar of shards."""
        return (5 if self.squares else 3) * slabs + bars**2

    def count_parts(self, slabs: int, bars: int) -> int:
        """Return the total parts that tasks hand on: slab to slab, and slab to bar of shards."""
        squares = 1 + len(self.squares) if self.squares else 0
        return (len(self.pointwise) + squares + 1) * slabs**2 + slabs * bars


@dataclass(frozen=True)
class FlowPlan(Plan):
    """The plan of a global flow in slabs.

    Parameters
    ----------
    grid, slabs, planes : int
        Cells per axis, number of slabs, and planes of the thickest.
    cut : Cut
        The slabs.
    fields : Fields
        Fields that make up the source.
    """

    grid: int
    slabs: int
    planes: int
    cut: Cut = field(repr=False)
    fields: Fields = field(repr=False)

    @property
    def parts(self) -> int:
        """Total parts that tasks hand on."""
        return self.fields.count_parts(self.slabs, len(shard_bars(self.cut.grid)))


def plan_flow(grid: Grid, names: Sequence[str], run: Run, thickness: int | None = None) -> FlowPlan:
    """Choose the slabs of a flow and estimate its cost.

    Parameters
    ----------
    grid : Grid
        The grid of the density.
    names : sequence of str
        Fields that make up the source of the flow.
    run : Run
        The session knows the memory; the settings may allow less.
    thickness : int, optional
        Most planes of a slab; by default chosen from the memory.

    Returns
    -------
    FlowPlan
        If its ``worker_memory`` exceeds the available memory, :func:`start_engine` refuses it.
    """
    fields, bars, cells = Fields.of(names), len(shard_bars(grid)), grid.cells**3
    cut, memory, threads = plan_cut(
        grid,
        run,
        held=fields.held,
        handled=3,
        written=3,
        thickness=thickness,
    )
    exchanged = fields.exchanged * block_bytes(grid.cells) * grid.cells
    stored = Shards(grid.cells, grid.shard, grid.chunk)
    return FlowPlan(
        stage="flow",
        tasks=fields.count_tasks(len(cut.planes), bars),
        unit="tasks",
        worker_memory=memory,
        threads=threads,
        read=4 * cells,
        written=12 * cells,
        cpu_seconds=FLOW_NUMBER * exchanged / 4,
        exchanged=exchanged,
        requests=Requests(
            get=count_planes(stored, [(1, 0)], cut.planes, count_workers(run))
            + OPENING * len(cut.planes)
        )
        + WRITING * stored.count,
        grid=grid.cells,
        slabs=len(cut.planes),
        planes=max(slab.stop - slab.start for slab in cut.planes),
        cut=cut,
        fields=fields,
    )


def count_box(store: StoredBox) -> Requests:
    """Return the requests of a flow that is made in memory."""
    stored = stored_shards(store)
    read = Requests(get=count_reads(stored, [[(0, store.grid)]] * 3, 1))
    return read + Requests(put=stored.count)
