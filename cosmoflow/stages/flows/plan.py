"""Plans of global flows in bars and slabs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cosmoflow.numerics.slabs import TIDES
from cosmoflow.numerics.wiener import POINTWISE
from cosmoflow.stages.costs import FLOW_NUMBER
from cosmoflow.stages.inputs.readers import READING
from cosmoflow.stages.requests import OPENING, count_bars, count_workers, stored_shards
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.slabs.plan import Cut, Grid, Holding, exchanged_bytes, plan_cut
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.requests import Requests, Shards, count_reads

WRITING = Requests(put=1, get=2)
"""Requests that write one shard: the metadata of the group and of the flow are read before."""

_TRAVELLING = {"squared_contrast": 1, "squared_tide": len(TIDES)}


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
        """Number of products that slabs hand on for the squares."""
        return sum(_TRAVELLING[name] for name in self.squares)

    @property
    def handed(self) -> int:
        """Number of fields whose modes are handed on."""
        return len(self.pointwise) + self.travelling + len(self.squares) + 3

    @property
    def holding(self) -> Holding:
        """What the tasks hold: what they are handed, what they make, and what they hand on."""
        sources = len(self.pointwise) + len(self.squares)
        return Holding(
            bar=max(READING + len(self.pointwise), self.travelling + len(self.squares), 3 + 3),
            lines=2 * max(3, self.travelling),
            slab=max(sources + 3, 1 + self.travelling),
            # The modes of the sources; k^2, weights, source, potential, product, transform back.
            planes=sources + 6,
            written=3,
        )

    def count_tasks(self, cut: Cut) -> int:
        """Return the number of tasks."""
        bars, slabs = len(cut.bars), len(cut.slabs)
        transforms = 2 * (bars + slabs) if self.squares else bars + slabs
        return transforms + cut.writing_tasks

    def count_parts(self, cut: Cut) -> int:
        """Return the total parts that tasks hand on: between bars and slabs, and to shards."""
        squares = 1 + len(self.squares) if self.squares else 0
        bars = len(cut.bars)
        parts = (len(self.pointwise) + squares + 1) * bars * len(cut.slabs)
        return parts if cut.whole_shards else parts + bars * cut.layers


@dataclass(frozen=True)
class FlowPlan(Plan):
    """The plan of a global flow in bars and slabs.

    Parameters
    ----------
    grid, bars, slabs, planes : int
        Cells per axis, number of bars and of slabs, and planes of the thickest slab.
    cut : Cut
        The bars and slabs.
    fields : Fields
        Fields that make up the source.
    """

    grid: int
    bars: int
    slabs: int
    planes: int
    cut: Cut = field(repr=False)
    fields: Fields = field(repr=False)

    @property
    def parts(self) -> int:
        """Total parts that tasks hand on."""
        return self.fields.count_parts(self.cut)


def plan_flow(grid: Grid, names: Sequence[str], run: Run, thickness: int | None = None) -> FlowPlan:
    """Cut the box for a flow and estimate its cost.

    Parameters
    ----------
    grid : Grid
        The grid of the density.
    names : sequence of str
        Fields that make up the source of the flow.
    run : Run
        The session knows the memory; the settings may allow less.
    thickness : int, optional
        Most planes of a slab and cells of a bar; by default chosen from the memory.

    Returns
    -------
    FlowPlan
        If its ``worker_memory`` exceeds the available memory, :func:`start_engine` refuses it.
    """
    fields, cells = Fields.of(names), grid.cells**3
    cut, memory, threads = plan_cut(grid, run, fields.holding, thickness)
    exchanged = exchanged_bytes(grid, fields.handed, 3, cut)
    stored = Shards(grid.cells, grid.shard, grid.chunk)
    reading = count_bars(stored, [(1, 0)], cut.x, cut.y, count_workers(run))
    return FlowPlan(
        stage="flow",
        tasks=fields.count_tasks(cut),
        unit="tasks",
        worker_memory=memory,
        threads=threads,
        read=4 * cells,
        written=12 * cells,
        cpu_seconds=FLOW_NUMBER * exchanged / 4,
        exchanged=exchanged,
        requests=Requests(get=reading + OPENING * len(cut.bars)) + WRITING * stored.count,
        grid=grid.cells,
        bars=len(cut.bars),
        slabs=len(cut.slabs),
        planes=max(slab.stop - slab.start for slab in cut.slabs),
        cut=cut,
        fields=fields,
    )


def count_box(store: StoredBox) -> Requests:
    """Return the requests of a flow that is made in memory."""
    stored = stored_shards(store)
    read = Requests(get=count_reads(stored, [[(0, store.grid)]] * 3, 1))
    return read + Requests(put=stored.count)
