"""Power spectra of boxes larger than memory: transforms in slabs that tasks hand to each other.

    planes ─▶ rows ─▶ sums

A task reads planes of one field and transforms them along y and z; a task that is handed its rows
by all of those transforms them along x, which gives modes, and sums their products in bins. One
transform serves every product that it has a part in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.slabs import Modes, RowWaves
from cosmoflow.numerics.spectra import PowerSum, Products, Term, WaveBins
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.stages.run import Run, Tell, run_graph, start_engine
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Derived, FieldReader, Source
from cosmoflow.stages.spectra.plan import ROWS, PowerCut, plan_power


def sum_power(
    sources: Sequence[Source],
    wanted: Sequence[Products],
    grid: Grid,
    run: Run,
    *,
    stage: str = "spectra",
    thickness: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[PowerSum]:
    """Transform fields and sum products of their modes.

    Parameters
    ----------
    sources : sequence of Source
        What is transformed.
    wanted : sequence of Products
        Of those transforms, by their place among the sources.
    grid : Grid
        The box, and the cells that one read of it needs.
    run : Run
        Settings, engine, progress.
    stage : str
        For people.
    thickness : int, optional
        Most planes, and rows, of a slab; none means what suits the memory.
    check : callable
        Called whenever rows are done; what it raises ends the run.

    Returns
    -------
    list of PowerSum
        One for each of what was wanted. Rows are summed in groups of :data:`ROWS`, and the groups
        in their order: neither the engine, nor the number of workers and which of them is first,
        nor the slabs make a difference.

    Raises
    ------
    ConfigError
        A worker would need more memory than it may have.
    DataError
        A field is damaged or holds values that are not finite.
    """
    plan, cut = plan_power(sources, grid, run, stage=stage, thickness=thickness)
    engine = start_engine(run, plan, remedy="more memory for a worker")
    found: dict[int, list[list[PowerSum]]] = {}

    def keep(key: Key, sums: list[list[PowerSum]]) -> None:
        check()
        found[key[1]] = sums

    def build(tell: Tell) -> TaskGraph:
        return build_graph(tuple(sources), tuple(wanted), cut, tell)

    run_graph(build, engine, plan, run, keep)
    totals = [products.zero() for products in wanted]
    for y in sorted(found):
        for group in found[y]:
            totals = _add(totals, group)
    return totals


def _add(totals: list[PowerSum], more: list[PowerSum]) -> list[PowerSum]:
    return [total + own for total, own in zip(totals, more, strict=True)]


def build_graph(
    sources: tuple[Source, ...], wanted: tuple[Products, ...], cut: PowerCut, tell: Tell
) -> TaskGraph:
    """Transform planes of every source, and sum what rows of all of them give."""
    graph = TaskGraph()
    count = len(cut.planes)
    for number, source in enumerate(sources):
        for x in range(count):
            key = ("planes", number * count + x)
            graph.add(key, planes_task, source, cut, x, key, tell, parts=len(cut.rows))
    for y in range(len(cut.rows)):
        parts = [graph.part(("planes", index), y) for index in range(len(sources) * count)]
        graph.add(("rows", y), rows_task, wanted, cut, y, tell, *parts, output=True)
    return graph


def planes_task(source: Source, cut: PowerCut, x: int, key: Key, tell: Tell) -> list[Modes]:
    """Read planes of a field and transform them; return the part of every y-slab."""
    slab = cut.planes[x]
    shape = (source.components, slab.stop - slab.start, cut.grid.cells)
    parts = slabs.forward_planes(source.blocks(slab), shape, cut.rows)
    tell(key)
    return parts


def rows_task(
    wanted: tuple[Products, ...], cut: PowerCut, y: int, tell: Tell, *parts: Modes
) -> list[list[PowerSum]]:
    """Transform rows of all fields along x; sum the products of their modes, group by group."""
    each, rows = len(cut.planes), cut.rows[y]
    fields = [parts[first : first + each] for first in range(0, len(parts), each)]

    def sum_rows(block: slice) -> list[PowerSum]:
        own = slice(rows.start + block.start, rows.start + block.stop)
        waves = RowWaves(cut.grid.cells, cut.grid.box_size, own)
        modes = [slabs.transform_rows(one, block) for one in fields]
        return [products.sum_rows(modes, waves) for products in wanted]

    groups: dict[int, list[PowerSum]] = {}
    blocks = row_blocks(rows, cut.grid.cells)
    for block, sums in zip(blocks, map_ahead(sum_rows, blocks), strict=True):
        group = (rows.start + block.start) // ROWS
        groups[group] = _add(groups[group], sums) if group in groups else sums
    tell(("rows", y))
    return list(groups.values())


def row_blocks(rows: slice, cells: int) -> list[slice]:
    """Cut the rows of a slab, counted from its first, into blocks that lie in one group each.

    Blocks are cut alike in every slab that begins with a group, whatever else it has.
    """
    step = 1
    while 2 * step <= ROWS and 2 * step * slabs.block_bytes(cells) <= BLOCK_BYTES_CPU:
        step *= 2
    inner = range(-(-rows.start // step) * step, rows.stop, step)
    edges = sorted({rows.start, rows.stop, *inner})
    return [slice(a - rows.start, b - rows.start) for a, b in itertools.pairwise(edges)]


def measure_power(
    readers: Mapping[str, FieldReader],
    quantities: Sequence[str],
    grid: Grid,
    run: Run,
    *,
    window: int = 0,
    check: Callable[[], None] = lambda: None,
) -> dict[str, PowerSum]:
    """Measure spectra of several boxes on one grid, each by itself and with the first.

    Parameters
    ----------
    readers : mapping of str to FieldReader
        The truth, then predictions.
    quantities : sequence of str
        Of :data:`cosmoflow.numerics.quantities.QUANTITIES`.
    grid : Grid
        The box.
    run : Run
        Settings, engine, progress.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis that modes of what is linear in the particles are
        divided by.
    check : callable
        Called whenever rows are done; what it raises ends the run.

    Returns
    -------
    dict of str to PowerSum
        Of each quantity, the pairs ``(0, 0)``, ``(i, i)`` and ``(0, i)`` over the readers.
    """
    bins = WaveBins.linear(grid.cells, grid.box_size)
    count = len(readers)
    pairs = [(0, 0)] + [pair for i in range(1, count) for pair in ((i, i), (0, i))]
    result: dict[str, PowerSum] = {}
    # One field of all boxes at a time, so that no more is in the object store at once.
    for field in dict.fromkeys(QUANTITIES[name].field for name in quantities):
        names = [name for name in quantities if QUANTITIES[name].field == field]
        sources = [Derived(reader, grid.cell_size, field) for reader in readers.values()]
        wanted = [Products(_terms(name, count, window), tuple(pairs), bins) for name in names]
        sums = sum_power(sources, wanted, grid, run, stage="evaluate", check=check)
        result |= dict(zip(names, sums, strict=True))
    return {name: result[name] for name in quantities}


def _terms(name: str, count: int, window: int) -> tuple[Term, ...]:
    quantity = QUANTITIES[name]
    power = window if quantity.linear else 0
    return tuple(Term((index,), quantity.derive, power) for index in range(count))
