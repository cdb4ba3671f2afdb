"""Transforms of boxes larger than memory, by tasks over bars and slabs that exchange parts.

    bars ─▶ slabs ─▶ sums
                 ╰▶ products ─▶ bars (and on to slabs again)
                            ╰▶ fields ─▶ write

A task of a bar transforms its lines along z and hands every slab its planes of modes. A task of a
slab transforms its planes along x and y, which gives modes. It either sums over the modes, or
multiplies them and hands every bar its part of the products. A task of a bar transforms products
back into real fields. The fields are written, or are the lines of another transform.

:mod:`cosmoflow.numerics.slabs` has the arithmetic. Spectra, global flows and spectral derivatives
define the fields to read, the operation on modes, and the destination of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import Column, TaskGraph, keeping_freed_buffers
from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.numerics.slabs import LineBlock, Modes
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.stages.slabs.plan import Cut

Fields = Iterable[tuple[tuple[int, ...], Iterable[LineBlock]]]
"""The leading dimensions and the lines of each field of a bar."""

ReadFields = Callable[..., Fields]
"""Maps a bar, and the parts of products if they are the source, to real fields."""

Multiply = Callable[[list[Tensor], WaveBlock], Iterable[Tensor]]
"""Maps the modes of every field in some planes to their products with functions of k."""

SumPlanes = Callable[[Sequence[Sequence[Modes]], Cut, slice], Any]
"""Maps the parts of every field and a slab to sums over its modes."""

Finish = Callable[[Tensor], Iterable[Tensor]]
"""Maps products in real space ``(count, a, b, n)`` to fields ``(a, b, n)``."""


class ShardWriter(Protocol):
    """The destination of fields; picklable."""

    def write(self, values: NDArray[np.float32], block: Block) -> None:
        """Write the values ``(count, nx, ny, nz)`` of one whole shard."""


Handed = tuple[str, int]
"""Parts of one field for the slabs: the tasks of all bars, and the first of the parts."""


@dataclass
class SlabGraph:
    """The graph of a transform, under construction.

    All callables passed to it must be picklable.

    Parameters
    ----------
    cut : Cut
        The bars and slabs.

    Attributes
    ----------
    graph : TaskGraph
        The tasks added so far.
    """

    cut: Cut
    graph: TaskGraph = field(default_factory=TaskGraph)

    def bars(
        self,
        read: ReadFields,
        fields: int = 1,
        name: str = "bars",
        *,
        products: str | None = None,
    ) -> list[Handed]:
        """Transform the lines of fields along z.

        Parameters
        ----------
        read : callable
            Returns the fields of a bar.
        fields : int
            Number of fields.
        name : str
            Name of the tasks.
        products : str, optional
            The tasks of slabs whose products make up the fields.

        Returns
        -------
        list of Handed
            One for each field.
        """
        count = len(self.cut.slabs)
        if name in self.graph.families:
            name = f"{name}-{len(self.graph.families)}"
        self.graph.add(
            name,
            partial(bar_task, read, self.cut),
            range(len(self.cut.bars)),
            reads=lambda bar: [] if products is None else [Column(products, bar)],
            parts=fields * count,
        )
        return [(name, one * count) for one in range(fields)]

    def sums(self, sum_planes: SumPlanes, fields: Sequence[Handed]) -> None:
        """Sum over the modes of all fields; tasks ``("slabs", z)`` return the sums."""
        self._slabs("slabs", partial(sum_task, sum_planes, self.cut), fields, output=True)

    def products(self, multiply: Multiply, count: int, fields: Sequence[Handed], name: str) -> str:
        """Make ``count`` products of modes; return the tasks, with a part for every bar."""
        task = partial(product_task, multiply, count, self.cut)
        self._slabs(name, task, fields, parts=len(self.cut.bars))
        return name

    def _slabs(
        self, name: str, task: Callable[..., Any], fields: Sequence[Handed], **how: Any
    ) -> None:
        def reads(z: int) -> list[Column]:
            return [Column(bars, first + z) for bars, first in fields]

        self.graph.add(name, task, range(len(self.cut.slabs)), reads=reads, **how)

    def write(
        self,
        finish: Finish,
        count: int,
        products: str,
        name: str,
        writer: ShardWriter,
        *,
        todo: Collection[int] | None = None,
    ) -> None:
        """Transform products back and write the fields in whole shards.

        A bar as wide as the shards is written by the task that transforms it. The fields of
        narrower bars are handed on to a task for each shard.

        Parameters
        ----------
        finish : callable
            Makes the fields.
        count : int
            Number of fields; a vector counts three times.
        products : str
            The tasks of slabs.
        name : str
            Name of the tasks that make the fields of narrower bars.
        writer : ShardWriter
            Writes them.
        todo : collection of int, optional
            Numbers of the shards to write, in C order; by default all.
        """
        cut = self.cut
        wanted = frozenset(range(cut.layers**3) if todo is None else todo)

        def reads(bar: int) -> list[Column]:
            return [Column(products, bar)]

        if cut.whole_shards:
            both = partial(finish_and_write, finish, count, cut, writer, wanted)
            bars = sorted({shard // cut.layers for shard in wanted})
            self.graph.add("write", both, bars, reads=reads, output=True)
            return
        inside = {column: cut.bars_inside(column) for column in {s // cut.layers for s in wanted}}
        bars = sorted({bar for inner in inside.values() for bar in inner})
        transform = partial(finish_task, finish, count, cut)
        self.graph.add(name, transform, bars, reads=reads, parts=cut.layers)

        def reads_bars(shard: int) -> list[Column]:
            across, along = divmod(shard, cut.layers)
            return [Column(name, along, inside[across])]

        join = partial(write_task, writer, cut)
        self.graph.add("write", join, sorted(wanted), reads=reads_bars, output=True)


@keeping_freed_buffers()
def bar_task(read: ReadFields, cut: Cut, bar: int, *products: Sequence[Modes]) -> list[Modes]:
    """Return the parts of each field of a bar, one for every slab."""
    own, parts = cut.bar(bar), list[Modes]()
    for lead, blocks in read(own, *(part for column in products for part in column)):
        parts += slabs.forward_lines(blocks, (*lead, *own.shape), cut.slabs)
    return parts


@keeping_freed_buffers()
def sum_task(sum_planes: SumPlanes, cut: Cut, z: int, *fields: Sequence[Modes]) -> Any:
    """Return the sums over the modes of a slab."""
    return sum_planes(fields, cut, cut.slabs[z])


def product_task(
    multiply: Multiply, count: int, cut: Cut, z: int, *fields: Sequence[Modes]
) -> list[Modes]:
    """Return the products of the modes of a slab, in one part for every bar."""
    waves = WaveBlock.slab(cut.grid.cells, cut.grid.box_size, cut.slabs[z])
    return slabs.filter_planes(fields, waves, cut.bars, count, multiply)


def finish_task(
    finish: Finish, count: int, cut: Cut, bar: int, products: Sequence[Modes]
) -> list[NDArray[np.float32]]:
    """Return the fields of a bar, in parts ``(count, a, b, length of a shard)``."""
    shape = (count, *cut.bar(bar).shape)
    layers = [slice(low, low + size) for low, size in axis_blocks(cut.grid.cells, cut.grid.shard)]
    parts = [np.empty((*shape, layer.stop - layer.start), np.float32) for layer in layers]

    def finish_block(block: LineBlock) -> None:
        x, make = block
        for place, values in enumerate(finish(make())):
            for part, layer in zip(parts, layers, strict=True):
                part[place, x] = values[..., layer].numpy()

    for _ in map_ahead(finish_block, slabs.joined_lines(products, cut.grid.cells)):
        pass
    return parts


def finish_and_write(
    finish: Finish,
    count: int,
    cut: Cut,
    writer: ShardWriter,
    wanted: Collection[int],
    bar: int,
    products: Sequence[Modes],
) -> None:
    """Write the wanted shards of a bar that is as wide as they are."""
    parts = finish_task(finish, count, cut, bar, products)
    for shard, values in enumerate(parts, start=bar * cut.layers):
        # One shard at a time: storage encodes the chunks of a shard in threads of its own.
        if shard in wanted:
            writer.write(values, cut.shard(shard))


def write_task(
    writer: ShardWriter, cut: Cut, shard: int, parts: Sequence[NDArray[np.float32]]
) -> None:
    """Write a shard, given its parts from the bars inside it."""
    block = cut.shard(shard)
    values = np.empty((len(parts[0]), *block.shape), np.float32)
    for part, bar in zip(parts, cut.bars_inside(shard // cut.layers), strict=True):
        x, y = cut.bar(bar).x.start - block.origin[0], cut.bar(bar).y.start - block.origin[1]
        _, a, b, _ = part.shape
        values[:, x : x + a, y : y + b] = part
    writer.write(values, block)
