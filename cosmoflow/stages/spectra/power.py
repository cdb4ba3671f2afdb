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
from cosmoflow.stages.slabs.sources import Derived, Source
from cosmoflow.stages.slabs.transform import SlabGraph
from cosmoflow.stages.spectra.plan import PowerPlan, plan_power

_BLOCKS = 15
"""Blocks of planes that a thread holds: velocity, divergence and vorticity of the truth (7), a
vector of one method and what is derived from it (6), and temporaries (2)."""


def sum_planes(
    wanted: tuple[Products, ...], fields: Sequence[Sequence[Modes]], cut: Cut, planes: slice
) -> list[list[PowerSum]]:
    """Return the sums of all products over a slab, for every group of :data:`GROUP` planes."""
    slab = WaveBlock.slab(cut.grid.cells, cut.grid.box_size, planes)
    bars = cut.bars

    def sum_block(block: slice) -> list[PowerSum]:
        def transform(index: int) -> Tensor:
            return slabs.transform_planes(fields[index], bars, block)

        return spectra.sum_terms(wanted, transform, slab.part(block))

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
    build.sums(partial(sum_planes, tuple(wanted)), fields)
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
    window: int = 0,
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
    window : int
        Power of ``sinc(k_i h / 2)`` per axis by which modes of quantities linear in the particles
        are divided.
    check : callable
        Called whenever a slab is done; an exception ends the run.

    Returns
    -------
    dict of str to PowerSum
        Sums of each quantity for the pairs ``(0, 0)``, ``(i, i)`` and ``(0, i)`` of readers.
    """
    bins = WaveBins.linear(grid.cells, grid.box_size)
    count = len(readers)
    pairs = [(0, 0)] + [pair for i in range(1, count) for pair in ((i, i), (0, i))]
    result: dict[str, PowerSum] = {}
    # Some fields of all boxes at a time, to limit the parts on disk.
    for fields in share_readings(quantities):
        names = [name for name in quantities if QUANTITIES[name].field in fields]
        sources = read_together(readers.values(), fields, grid)
        wanted = []
        for name in names:
            quantity = QUANTITIES[name]
            place, power = fields.index(quantity.field), window if quantity.linear else 0
            terms = (
                Term((index * len(fields) + place,), quantity.derive, power)
                for index in range(count)
            )
            wanted.append(Products(tuple(terms), tuple(pairs), bins))
        plan = plan_power(
            sources, grid, run, stage=f"spectra of {', '.join(fields)}", blocks=_BLOCKS
        )
        sums = sum_power(sources, wanted, plan, run, check=check)
        result |= dict(zip(names, sums, strict=True))
    return {name: result[name] for name in quantities}


def plan_measurement(
    readers: Iterable[StoreReader], quantities: Sequence[str], grid: Grid, run: Run
) -> list[PowerPlan]:
    """Plan the transforms of :func:`measure_power`."""
    boxes = list(readers)
    return [
        plan_power(read_together(boxes, fields, grid), grid, run, stage="evaluate", blocks=_BLOCKS)
        for fields in share_readings(quantities)
    ]


def share_readings(quantities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the fields to transform for some quantities, in tuples that share a reading.

    Scalars share one; each vector, which has as many numbers as three of them, has its own.
    """
    fields = dict.fromkeys(QUANTITIES[name].field for name in quantities)
    shared: list[tuple[str, ...]] = [(name,) for name in fields if QUANTITIES[name].components > 1]
    if scalars := tuple(name for name in fields if QUANTITIES[name].components == 1):
        shared.append(scalars)
    return shared


def read_together(
    readers: Iterable[StoreReader], fields: tuple[str, ...], grid: Grid
) -> list[Derived]:
    """Return the sources of some fields of each box."""
    return [Derived(reader, grid.cell_size, fields) for reader in readers]
