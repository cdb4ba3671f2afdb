"""Plan of a global flow that is made in slabs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cosmoflow.numerics.slabs import block_bytes
from cosmoflow.numerics.wiener import POINTWISE
from cosmoflow.stages.costs import FLOW_NUMBER
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.slabs.plan import Cut, Grid, plan_cut, shard_bars

_TRAVELLING = {"squared_contrast": 1, "squared_tide": 3}


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that the source of a flow is made of.

    Parameters
    ----------
    pointwise, squares : tuple of str
        Names of :data:`cosmoflow.numerics.wiener.FIELDS`: fields that follow from the density of
        each cell, and fields that take transforms of the contrast.
    """

    pointwise: tuple[str, ...]
    squares: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Fields:
        """Return the fields of a source, and the contrast if its squares are among them."""
        squares = tuple(name for name in names if name not in POINTWISE)
        wanted = {*names, "contrast"} if squares else set(names)
        return cls(tuple(name for name in POINTWISE if name in wanted), squares)

    @property
    def travelling(self) -> int:
        """Number of products that y-slabs hand on for the squares."""
        return sum(_TRAVELLING[name] for name in self.squares)

    @property
    def held(self) -> int:
        """Most fields that a task holds of its slab: real ones, or modes, as large."""
        # Planes are read into one array and held while their modes are made; a velocity has three
        # components.
        return max(3, 1 + len(self.pointwise), self.travelling)

    @property
    def exchanged(self) -> int:
        """Fields that tasks hand on, in all."""
        return len(self.pointwise) + self.travelling + len(self.squares) + 2 + 3

    def count_tasks(self, slabs: int, bars: int) -> int:
        """Return the number of tasks: passes over the slabs, and bars of shards."""
        return (5 if self.squares else 3) * slabs + bars**2

    def count_parts(self, slabs: int, bars: int) -> int:
        """Return the parts that tasks hand on in all: slab to slab, and slabs to bars of shards."""
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
        The fields that the source is made of.
    """

    grid: int
    slabs: int
    planes: int
    cut: Cut = field(repr=False)
    fields: Fields = field(repr=False)

    @property
    def parts(self) -> int:
        """Parts that tasks hand on in all."""
        return self.fields.count_parts(self.slabs, len(shard_bars(self.cut.grid)))


def plan_flow(grid: Grid, names: Sequence[str], run: Run, thickness: int | None = None) -> FlowPlan:
    """Choose the slabs, and say what making a flow in them takes.

    Parameters
    ----------
    grid : Grid
        The grid of the density.
    names : sequence of str
        The fields that the source of the flow is made of.
    run : Run
        Its session knows the memory, its settings may allow less.
    thickness : int, optional
        Most planes of a slab; none means what suits the memory.

    Returns
    -------
    FlowPlan
        Its ``worker_memory`` may be more than there is: :func:`start_engine` refuses it then.
    """
    fields, bars, cells = Fields.of(names), len(shard_bars(grid)), grid.cells**3
    cut, memory = plan_cut(
        grid,
        run,
        held=fields.held,
        handled=3,
        written=3,
        count_parts=lambda slabs: fields.count_parts(slabs, bars),
        thickness=thickness,
    )
    exchanged = fields.exchanged * block_bytes(grid.cells) * grid.cells
    return FlowPlan(
        stage="flow",
        tasks=fields.count_tasks(len(cut.planes), bars),
        unit="tasks",
        worker_memory=memory,
        read=4 * cells,
        written=12 * cells,
        cpu_seconds=FLOW_NUMBER * exchanged / 4,
        exchanged=exchanged,
        grid=grid.cells,
        slabs=len(cut.planes),
        planes=max(slab.stop - slab.start for slab in cut.planes),
        cut=cut,
        fields=fields,
    )
