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

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.numerics.slabs import Modes, Parts, RowWaves
from cosmoflow.stages.run import Notify
from cosmoflow.stages.slabs.plan import Cut, shard_bars

Blocks = Iterable[tuple[slice, Tensor]]
"""Ranges of planes in a slab, from its first, and their values ``(..., b, n, n)``, float32."""

Fields = Iterable[tuple[tuple[int, ...], Blocks]]
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


Handed = list[tuple[Key, int]]
"""Parts of one field for the y-slabs: the task of each x-slab, and its first part."""


@dataclass
class SlabGraph:
    """The graph of a transform, under construction.

    All callables passed to it must be picklable.

    Parameters
    ----------
    cut : Cut
        The slabs.
    notify : callable
        Called by every task with its key when the task is done.

    Attributes
    ----------
    graph : TaskGraph
        The tasks added so far.
    """

    cut: Cut
    notify: Notify
    graph: TaskGraph = field(default_factory=TaskGraph)
    _added: Counter[str] = field(default_factory=Counter, init=False)

    def planes(
        self,
        read: ReadFields,
        fields: int = 1,
        name: str = "planes",
        *,
        products: Sequence[Key] = (),
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
        products : sequence of Key
            Tasks of y-slabs whose products make up the fields.

        Returns
        -------
        list of Handed
            One for each field.
        """
        slabs, rows = len(self.cut.planes), len(self.cut.rows)
        first = self._added[name]
        self._added[name] += slabs
        keys = [(name, first + x) for x in range(slabs)]
        for x, key in enumerate(keys):
            given = (self.graph.part(one, x) for one in products)
            self.graph.add(
                key, planes_task, read, self.cut, x, key, self.notify, *given, parts=fields * rows
            )
        return [[(key, one * rows) for key in keys] for one in range(fields)]

    def sums(self, sum_rows: SumRows, fields: Sequence[Handed]) -> None:
        """Sum over the modes of all fields; tasks ``("rows", y)`` return the sums."""
        self._rows("rows", partial(sum_task, sum_rows), fields, output=True)

    def products(
        self, multiply: Multiply, count: int, fields: Sequence[Handed], name: str
    ) -> list[Key]:
        """Make ``count`` products of modes; return the tasks, with a part for every x-slab."""
        task = partial(product_task, multiply, count)
        return self._rows(name, task, fields, parts=len(self.cut.planes))

    def _rows(
        self, name: str, task: Callable[..., Any], fields: Sequence[Handed], **how: Any
    ) -> list[Key]:
        keys = [(name, y) for y in range(len(self.cut.rows))]
        for y, key in enumerate(keys):
            parts = (self.graph.part(one, first + y) for handed in fields for one, first in handed)
            self.graph.add(key, task, self.cut, y, key, self.notify, *parts, **how)
        return keys

    def write(
        self,
        finish: Finish,
        count: int,
        products: Sequence[Key],
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
        products : sequence of Key
            The tasks of y-slabs.
        name : str
            Name of the tasks that make the fields.
        writer : ShardWriter
            Writes them.
        skip : frozenset of int
            Bars of shards that need no writing, counted along y, then x.
        """
        cut, bars = self.cut, shard_bars(self.cut.grid)
        for x in range(len(cut.planes)):
            parts = (self.graph.part(one, x) for one in products)
            key = (name, x)
            task = partial(finish_task, finish, count)
            self.graph.add(key, task, cut, key, self.notify, *parts, parts=len(bars))
        for number, bar in enumerate(bars):
            inside = [x for x, slab in enumerate(cut.planes) if bar.start <= slab.start < bar.stop]
            for other, along in enumerate(bars):
                key = ("write", number * len(bars) + other)
                if key[1] not in skip:
                    parts = (self.graph.part((name, x), other) for x in inside)
                    corner = (bar.start, along.start)
                    self.graph.add(
                        key, write_task, writer, cut.grid.shard, corner, key, self.notify, *parts,
                        output=True,
                    )  # fmt: skip


def planes_task(
    read: ReadFields, cut: Cut, x: int, key: Key, notify: Notify, *products: Modes
) -> list[Modes]:
    """Return the parts of each field of an x-slab, one for every y-slab."""
    slab, parts = cut.planes[x], list[Modes]()
    for lead, blocks in read(slab, *products):
        shape = (*lead, slab.stop - slab.start, cut.grid.cells)
        parts += slabs.forward_planes(blocks, shape, cut.rows)
    notify(key)
    return parts


def _by_field(cut: Cut, parts: Sequence[Modes]) -> list[Sequence[Modes]]:
    each = len(cut.planes)
    return [parts[first : first + each] for first in range(0, len(parts), each)]


def sum_task(sum_rows: SumRows, cut: Cut, y: int, key: Key, notify: Notify, *parts: Modes) -> Any:
    """Return the sums over the modes of a y-slab."""
    found = sum_rows(_by_field(cut, parts), cut, cut.rows[y])
    notify(key)
    return found


def product_task(
    multiply: Multiply, count: int, cut: Cut, y: int, key: Key, notify: Notify, *parts: Modes
) -> list[Modes]:
    """Return the products of the modes of a y-slab, in one part for every x-slab."""
    waves = RowWaves(cut.grid.cells, cut.grid.box_size, cut.rows[y])
    found = slabs.filter_rows(_by_field(cut, parts), waves, cut.planes, count, multiply)
    notify(key)
    return found


def finish_task(
    finish: Finish, count: int, cut: Cut, key: Key, notify: Notify, *products: Modes
) -> list[NDArray[np.float32]]:
    """Return the fields of an x-slab, in parts as wide as shards along y."""
    cells = cut.grid.cells
    shape = (count, products[0].shape[1], cells, cells)
    parts = Parts(shape, -2, shard_bars(cut.grid), np.float32)
    for own, block in slabs.join_rows(products):
        for place, values in enumerate(finish(block)):
            parts.put((place, own), values)
    notify(key)
    return parts.arrays


def write_task(
    writer: ShardWriter,
    shard: int,
    corner: tuple[int, int],
    key: Key,
    notify: Notify,
    *parts: NDArray[np.float32],
) -> None:
    """Write the bar of shards along z at corner (x, y), given its parts along x."""
    for start, size in axis_blocks(parts[0].shape[-1], shard):
        values = np.concatenate([part[..., start : start + size] for part in parts], axis=1)
        writer.write(values, Block((*corner, start), values.shape[1:]))
    notify(key)
