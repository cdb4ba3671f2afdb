"""Transforms of boxes larger than memory, by tasks over slabs that exchange parts of results.

    planes ─▶ rows ─▶ sums
                  ╰▶ products ─▶ planes (and on to rows again)
                             ╰▶ fields ─▶ write

A task of an x-slab transforms planes along y and z and hands every y-slab its rows. A task of a
y-slab transforms its rows along x, which gives modes. It either sums over the modes, or multiplies
them and hands every x-slab the planes of the products. A task of an x-slab transforms products back
into real fields. The fields are written, or are the planes of another transform.

:mod:`cosmoflow.numerics.slabs` has the arithmetic. Spectra, global flows and spectral derivatives
define the fields to read, the operation on modes, and the destination of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import Column, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.numerics.slabs import Modes, Parts, PlaneBlock, RowWaves
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.stages.slabs.plan import Cut, shard_bars

Fields = Iterable[tuple[tuple[int, ...], Iterable[PlaneBlock]]]
"""The leading dimensions and the planes of each field of an x-slab."""

ReadFields = Callable[..., Fields]
"""Maps the planes of an x-slab, and products if they are the source, to real fields."""

Multiply = Callable[[list[Tensor], RowWaves], Iterable[Tensor]]
"""Maps the modes of every field in some rows to their products with functions of k."""

SumRows = Callable[[Sequence[Sequence[Modes]], Cut, slice], Any]
"""Maps the parts of every field and a y-slab to sums over its modes."""

Finish = Callable[[Tensor], Iterable[Tensor]]
"""Maps products ``(count, b, n, n // 2 + 1)``, modes along y and z, to fields ``(b, n, n)``."""


class ShardWriter(Protocol):
    """The destination of fields; picklable."""

    def write(self, values: NDArray[np.float32], block: Block) -> None:
        """Write the values ``(count, nx, ny, nz)`` of one whole shard."""


Handed = tuple[str, int]
"""Parts of one field for the y-slabs: the tasks of all x-slabs, and the first of the parts."""


@dataclass
class SlabGraph:
    """The graph of a transform, under construction.

    All callables passed to it must be picklable.

    Parameters
    ----------
    cut : Cut
        The slabs.

    Attributes
    ----------
    graph : TaskGraph
        The tasks added so far.
    """

    cut: Cut
    graph: TaskGraph = field(default_factory=TaskGraph)

    def planes(
        self,
        read: ReadFields,
        fields: int = 1,
        name: str = "planes",
        *,
        products: str | None = None,
    ) -> list[Handed]:
        """Transform the planes of fields along y and z.

        Parameters
        ----------
        read : callable
            Returns the fields of an x-slab.
        fields : int
            Number of fields.
        name : str
            Name of the tasks.
        products : str, optional
            The tasks of y-slabs whose products make up the fields.

        Returns
        -------
        list of Handed
            One for each field.
        """
        rows = len(self.cut.rows)
        if name in self.graph.families:
            name = f"{name}-{len(self.graph.families)}"
        self.graph.add(
            name,
            partial(planes_task, read, self.cut),
            range(len(self.cut.planes)),
            reads=lambda x: [] if products is None else [Column(products, x)],
            parts=fields * rows,
        )
        return [(name, one * rows) for one in range(fields)]

    def sums(self, sum_rows: SumRows, fields: Sequence[Handed]) -> None:
        """Sum over the modes of all fields; tasks ``("rows", y)`` return the sums."""
        self._rows("rows", partial(sum_task, sum_rows, self.cut), fields, output=True)

    def products(self, multiply: Multiply, count: int, fields: Sequence[Handed], name: str) -> str:
        """Make ``count`` products of modes; return the tasks, with a part for every x-slab."""
        task = partial(product_task, multiply, count, self.cut)
        self._rows(name, task, fields, parts=len(self.cut.planes))
        return name

    def _rows(
        self, name: str, task: Callable[..., Any], fields: Sequence[Handed], **how: Any
    ) -> None:
        def reads(y: int) -> list[Column]:
            return [Column(planes, first + y) for planes, first in fields]

        self.graph.add(name, task, range(len(self.cut.rows)), reads=reads, **how)

    def write(
        self,
        finish: Finish,
        count: int,
        products: str,
        name: str,
        writer: ShardWriter,
        *,
        skip: frozenset[int] = frozenset(),
    ) -> None:
        """Transform products back and write the fields in whole shards.

        Parameters
        ----------
        finish : callable
            Makes the fields.
        count : int
            Number of fields; a vector counts three times.
        products : str
            The tasks of y-slabs.
        name : str
            Name of the tasks that make the fields.
        writer : ShardWriter
            Writes them.
        skip : frozenset of int
            Bars of shards that need no writing, counted along y, then x.
        """
        cut, bars = self.cut, shard_bars(self.cut.grid)
        self.graph.add(
            name,
            partial(finish_task, finish, count, cut),
            range(len(cut.planes)),
            reads=lambda x: [Column(products, x)],
            parts=len(bars),
        )
        inside = [
            [x for x, slab in enumerate(cut.planes) if bar.start <= slab.start < bar.stop]
            for bar in bars
        ]

        def reads(bar: int) -> list[Column]:
            across, along = divmod(bar, len(bars))
            return [Column(name, along, inside[across])]

        task = partial(write_task, writer, cut.grid.shard, [bar.start for bar in bars])
        todo = [bar for bar in range(len(bars) ** 2) if bar not in skip]
        self.graph.add("write", task, todo, reads=reads, output=True)


def planes_task(read: ReadFields, cut: Cut, x: int, *products: Sequence[Modes]) -> list[Modes]:
    """Return the parts of each field of an x-slab, one for every y-slab."""
    slab, parts = cut.planes[x], list[Modes]()
    for lead, blocks in read(slab, *(part for column in products for part in column)):
        shape = (*lead, slab.stop - slab.start, cut.grid.cells)
        parts += slabs.forward_planes(blocks, shape, cut.rows)
    return parts


def sum_task(sum_rows: SumRows, cut: Cut, y: int, *fields: Sequence[Modes]) -> Any:
    """Return the sums over the modes of a y-slab."""
    return sum_rows(fields, cut, cut.rows[y])


def product_task(
    multiply: Multiply, count: int, cut: Cut, y: int, *fields: Sequence[Modes]
) -> list[Modes]:
    """Return the products of the modes of a y-slab, in one part for every x-slab."""
    waves = RowWaves(cut.grid.cells, cut.grid.box_size, cut.rows[y])
    return slabs.filter_rows(fields, waves, cut.planes, count, multiply)


def finish_task(
    finish: Finish, count: int, cut: Cut, x: int, products: Sequence[Modes]
) -> list[NDArray[np.float32]]:
    """Return the fields of an x-slab, in parts as wide as shards along y."""
    cells = cut.grid.cells
    shape = (count, products[0].shape[1], cells, cells)
    parts = Parts(shape, -2, shard_bars(cut.grid), np.float32)

    def finish_block(block: PlaneBlock) -> None:
        own, join = block
        for place, values in enumerate(finish(join())):
            parts.put((place, own), values)

    for _ in map_ahead(finish_block, slabs.joined_blocks(products)):
        pass
    return parts.arrays


def write_task(
    writer: ShardWriter,
    shard: int,
    corners: Sequence[int],
    bar: int,
    parts: Sequence[NDArray[np.float32]],
) -> None:
    """Write a bar of shards along z, given its parts along x."""
    across, along = divmod(bar, len(corners))
    # One shard at a time: storage encodes the chunks of a shard in threads of its own.
    for start, size in axis_blocks(parts[0].shape[-1], shard):
        values = np.concatenate([part[..., start : start + size] for part in parts], axis=1)
        corner = corners[across], corners[along], start
        writer.write(values, Block(corner, values.shape[1:]))
