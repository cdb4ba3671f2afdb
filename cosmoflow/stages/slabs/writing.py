"""From slabs to shards: tasks that write join what x-slabs have of whole shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.stages.run import Tell


class ShardWriter(Protocol):
    """Where values go; picklable."""

    def write(self, values: NDArray[np.float32], block: Block) -> None:
        """Write the values ``(components, nx, ny, nz)`` of one whole shard."""


def shard_bars(grid: int, shard: int) -> list[slice]:
    """Return where shards lie along an axis: bars of them along z are written by one task."""
    return [slice(start, start + size) for start, size in axis_blocks(grid, shard)]


def add_writes(
    graph: TaskGraph,
    source: str,
    slabs: Sequence[slice],
    grid: int,
    shard: int,
    writer: ShardWriter,
    tell: Tell,
    *,
    skip: frozenset[int] = frozenset(),
) -> None:
    """Add the tasks that write what tasks ``(source, x)`` have in a part for each bar along y.

    Parameters
    ----------
    graph : TaskGraph
        Has those tasks.
    source : str
        Their name.
    slabs : sequence of slice
        Along x, none of which lies in two shards.
    grid, shard : int
        Cells per axis of the grid, and of a shard.
    writer : ShardWriter
        Writes.
    tell : callable
        Hears of every task.
    skip : frozenset of int
        Bars that need no writing, counted along y, then x.
    """
    bars = shard_bars(grid, shard)
    for number, bar in enumerate(bars):
        inside = [x for x, slab in enumerate(slabs) if bar.start <= slab.start < bar.stop]
        for other, along in enumerate(bars):
            key = ("write", number * len(bars) + other)
            if key[1] in skip:
                continue
            parts = (graph.part((source, x), other) for x in inside)
            corner = (bar.start, along.start)
            graph.add(key, write_task, writer, shard, corner, key, tell, *parts, output=True)


def write_task(
    writer: ShardWriter,
    shard: int,
    corner: tuple[int, int],
    key: Key,
    tell: Tell,
    *parts: NDArray[np.float32],
) -> None:
    """Write the shards that lie along z from a corner (x, y), given their parts along x."""
    for start, size in axis_blocks(parts[0].shape[-1], shard):
        values = np.concatenate([part[..., start : start + size] for part in parts], axis=1)
        writer.write(values, Block((*corner, start), values.shape[1:]))
    tell(key)
