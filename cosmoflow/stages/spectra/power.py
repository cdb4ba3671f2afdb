"""Power spectra of boxes larger than memory: transforms in slabs, and sums over their modes.

All products share the transform of a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from cosmoflow.engine import Key
from cosmoflow.numerics import slabs, spectra
from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.slabs import Modes
from cosmoflow.numerics.spectra import PowerSum, Products, Term, WaveBins
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.stages.inputs.readers import StoreReader
from cosmoflow.stages.run import Run, run_graph, start_engine
from cosmoflow.stages.slabs.plan import Cut, Grid
from cosmoflow.stages.slabs.sources import Source
from cosmoflow.stages.slabs.transform import SlabGraph
from cosmoflow.stages.spectra.plan import PowerPlan, plan_power
from cosmoflow.stages.spectra.readings import LinearModes, read_together, share_readings

_BLOCKS = 15
"""Blocks of planes that a thread holds: two scalars, divergence and vorticity of the truth (6), a
vector of one method and what is derived from it (7), and temporaries (2)."""


def sum_planes(
    wanted: tuple[Products, ...],
    linear: tuple[LinearModes, ...],
    fields: Sequence[Sequence[Modes]],
    cut: Cut,
    planes: slice,
) -> list[list[PowerSum]]:
    """Return the sums of all products over a slab, for every group of :data:`GROUP` planes."""
    slab = WaveBlock.slab(cut.grid.cells, cut.grid.box_size, planes)
    bars = cut.bars

    def sum_block(block: slice) -> list[PowerSum]:
        waves = slab.part(block)

        # Neither calls itself: a function in its own closure would hold the parts until the next
        # garbage collection.
        def read(index: int) -> Tensor:
            return slabs.transform_planes(fields[index], bars, block)

        def transform(index: int) -> Tensor:
            if index < len(fields):
                return read(index)
            made = linear[index - len(fields)]
            return made.make(read(made.contrast), waves)

        return spectra.sum_terms(wanted, transform, waves)

    groups: dict[int, list[PowerSum]] = {}
    blocks = slabs.plane_blocks(planes, cut.grid.cells)
    for block, sums in zip(blocks, map_ahead(sum_block, blocks), strict=True):
        group = (planes.start + block.start) // slabs.GROUP
        groups[group] = _add(groups[group], sums) if group in groups else sums
    return list(groups.values())


def sum_power(
    sources: Sequence[Source],
    wanted: Sequence[Products],
    plan: PowerPlan,
    run: Run,
    *,
    linear: Sequence[LinearModes] = (),
    check: Callable[[], None] = lambda: None,
) -> list[PowerSum]:
    """Transform fields and sum products of their modes.

    Parameters
    ----------
    sources : sequence of Source
        The fields.
    wanted : sequence of Products
        Products of the transforms, which are numbered through all sources.
    plan : PowerPlan
        Plan of :func:`plan_power` for these sources.
    run : Run
        Settings, engine, progress.
    linear : sequence of LinearModes
        Velocities that are made from transforms; they are numbered after these.
    check : callable
        Called whenever a slab is done; an exception ends the run.

    Returns
    -------
    list of PowerSum
        One sum for each of ``wanted``. Planes are summed in groups, and the groups in order, so the
        result is independent of the engine, the workers, their order, and how the box is cut, as
        long as slabs begin with a group.

    Raises
    ------
    ConfigError
        A worker would need more memory than it is allowed.
    DataError
        A field is damaged or has values that are not finite.
    """
    engine = start_engine(run, plan, remedy=plan.remedy)
    found: dict[int, list[list[PowerSum]]] = {}

    def keep(key: Key, sums: list[list[PowerSum]]) -> None:
        check()
        found[key[1]] = sums

    build = SlabGraph(plan.cut)
    fields = [one for source in sources for one in build.bars(source.fields, source.transforms)]
    build.sums(partial(sum_planes, tuple(wanted), tuple(linear)), fields)
    run_graph(build.graph, engine, plan, run, keep)
    totals = [products.zero() for products in wanted]
    for z in sorted(found):
        for group in found[z]:
            totals = _add(totals, group)
    return totals


def _add(totals: list[PowerSum], more: list[PowerSum]) -> list[PowerSum]:
    return [total + own for total, own in zip(totals, more, strict=True)]


def measure_power(
    readers: Mapping[str, StoreReader],
    quantities: Sequence[str],
    grid: Grid,
    run: Run,
    *,
    rate: float = 1.0,
    window: int = 0,
    in_memory: bool = False,
    check: Callable[[], None] = lambda: None,
) -> dict[str, PowerSum]:
    """Measure the spectra of several boxes on one grid, and their cross spectra with the first.

    Parameters
    ----------
    readers : mapping of str to StoreReader
        The truth, then predictions.
    quantities : sequence of str
        Names in :data:`cosmoflow.numerics.quantities.QUANTITIES`.
    grid : Grid
        The box.
    run : Run
        Settings, engine, progress.
    rate : float
        ``f a H``, km/s per Mpc/h, of linear theory.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis by which modes of quantities linear in the particles
        are divided.
    in_memory : bool
        Whether the readers have their fields in memory.
    check : callable
        Called whenever a slab is done; an exception ends the run.

    Returns
    -------
    dict of str to PowerSum
        Sums of each quantity for the pairs ``(0, 0)``, ``(i, i)`` and ``(0, i)`` of readers.
    """
    bins = WaveBins.linear(grid.cells, grid.box_size)
    boxes = list(readers.values())
    pairs = [(0, 0)] + [pair for i in range(1, len(boxes)) for pair in ((i, i), (0, i))]
    result: dict[str, PowerSum] = {}
    # Some fields of all boxes at a time, to limit the parts on disk.
    for fields in share_readings(quantities):
        names = [name for name in quantities if QUANTITIES[name].field in fields]
        reading = read_together(boxes, fields, grid, rate)
        wanted = []
        for name in names:
            quantity = QUANTITIES[name]
            power = window if quantity.linear else 0
            terms = (
                Term((reading.places[number, quantity.field],), quantity.derive, power)
                for number in range(len(boxes))
            )
            wanted.append(Products(tuple(terms), tuple(pairs), bins))
        stage = f"spectra of {', '.join(fields)}"
        plan = _plan(reading.sources, grid, run, in_memory=in_memory, stage=stage)
        sums = sum_power(reading.sources, wanted, plan, run, linear=reading.linear, check=check)
        result |= dict(zip(names, sums, strict=True))
    return {name: result[name] for name in quantities}


def plan_measurement(
    readers: Iterable[StoreReader],
    quantities: Sequence[str],
    grid: Grid,
    run: Run,
    *,
    in_memory: bool = False,
) -> list[PowerPlan]:
    """Plan the transforms of :func:`measure_power`."""
    boxes = list(readers)
    return [
        _plan(read_together(boxes, fields, grid).sources, grid, run, in_memory=in_memory)
        for fields in share_readings(quantities)
    ]


def _plan(
    sources: Sequence[Source], grid: Grid, run: Run, *, in_memory: bool, stage: str = "evaluate"
) -> PowerPlan:
    return plan_power(sources, grid, run, stage=stage, blocks=_BLOCKS, in_memory=in_memory)
