"""Power spectra of boxes larger than memory: transforms in slabs that tasks hand to each other.

    planes ─▶ rows ─▶ sums

A task reads planes of one field and transforms them along y and z; a task that is handed its rows
by all of those transforms them along x, which gives modes, and sums their products in bins. One
transform serves every product that it has a part in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.quantities import FIELDS, QUANTITIES, Field, wrap
from cosmoflow.numerics.slabs import Modes, RowWaves
from cosmoflow.numerics.spectra import PowerSum, Products, Term, WaveBins
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.tiles import grow
from cosmoflow.stages.graphs import Tell, run_graph
from cosmoflow.stages.power_plan import ROWS, Grid, PowerCut, plan_power
from cosmoflow.stages.run import Run, start_engine
from cosmoflow.storage.fields import FieldStore


class Source(Protocol):
    """A real field of a box, read planes by planes in whatever process they are needed."""

    @property
    def components(self) -> int:
        """1, or 3 of a vector."""

    @property
    def held(self) -> float:
        """Numbers that a cell of a slab takes at most while its field is read and made."""

    @property
    def working(self) -> int:
        """Numbers that a cell of a block takes beside those, where the block is made at once."""

    def blocks(self, x: slice) -> Iterable[tuple[slice, Tensor]]:
        """Yield planes of a slab, counted from its first, and values ``(components, b, n, n)``."""

    def read(self, block: Block) -> Tensor:
        """Return the values ``(components, nx, ny, nz)`` in a block."""


class FieldReader(Protocol):
    """Density over its mean and velocity, km/s, of one box; picklable."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    def held(self, names: tuple[str, ...]) -> float:
        """Return the numbers that a cell takes at most while these are read."""

    def read(self, name: str, block: Block) -> NDArray[np.float32]:
        """Return ``density`` or ``velocity`` in a periodic block."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a fields store.

    Parameters
    ----------
    url, name : str
        Of the store, and of the variable in it.
    components : int
        1, or 3 of a vector.
    lead : tuple of int
        Indices into leading dimensions to fix, such as the smoothing scale.
    offset : float
        What is taken away from every cell: 1 of a density over its mean, whose fluctuations are
        then transformed without the rounding of a large mean.
    """

    url: str
    name: str
    components: int
    lead: tuple[int, ...] = ()
    offset: float = 0.0

    @property
    def held(self) -> float:
        """The values alone."""
        return self.components

    @property
    def working(self) -> int:
        """Nothing."""
        return 0

    def blocks(self, x: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield planes and their values."""
        store = FieldStore(self.url)
        values = self._read(store, Block((x.start, 0, 0), (x.stop - x.start, *2 * (store.grid,))))
        for own in slabs.plane_blocks(values.shape[1], store.grid):
            yield own, values[:, own]

    def read(self, block: Block) -> Tensor:
        """Return the values in a block."""
        return self._read(FieldStore(self.url), block)

    def _read(self, store: FieldStore, block: Block) -> Tensor:
        values = torch.from_numpy(store.read_block(self.name, block, lead=self.lead))
        if self.offset:
            values -= self.offset
        return values.view(self.components, *block.shape)


@dataclass(frozen=True, slots=True)
class Derived:
    """A field that follows from density and velocity.

    Parameters
    ----------
    reader : FieldReader
        Of both.
    cell : float
        Side of a cell, Mpc/h.
    field : str
        Of :data:`cosmoflow.numerics.quantities.FIELDS`.
    """

    reader: FieldReader
    cell: float
    field: str

    @property
    def rule(self) -> Field:
        """How it is made."""
        return FIELDS[self.field]

    @property
    def components(self) -> int:
        """1, or 3 of a vector."""
        return self.rule.components

    @property
    def held(self) -> float:
        """What is read of the slab; the field is made of a few planes at a time."""
        return self.reader.held(self.rule.reads)

    @property
    def working(self) -> int:
        """What the rule takes."""
        return self.rule.working

    def blocks(self, x: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield planes and their values."""
        rule, grid = self.rule, self.reader.grid
        planes = x.stop - x.start
        block = Block((x.start - rule.halo, 0, 0), (planes + 2 * rule.halo, grid, grid))
        read = {name: torch.from_numpy(self.reader.read(name, block)) for name in rule.reads}
        for own in slabs.plane_blocks(planes, grid):
            around = slice(own.start, own.stop + 2 * rule.halo)
            values = {
                name: wrap(field[..., around, :, :], rule.halo) for name, field in read.items()
            }
            made = rule.make(values, self.cell)
            yield own, made.view(rule.components, own.stop - own.start, grid, grid)

    def read(self, block: Block) -> Tensor:
        """Return the values in a block."""
        rule = self.rule
        around = grow(block, rule.halo)
        values = {name: torch.from_numpy(self.reader.read(name, around)) for name in rule.reads}
        return rule.make(values, self.cell).view(rule.components, *block.shape)


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
