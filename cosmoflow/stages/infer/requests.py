"""Requests of `infer` to an object store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.model.caching import CachedFields
from cosmoflow.model.sources import FieldSource, Lead, variable_of
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, axis_runs, grid_blocks
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.stages.infer.request import Work, wanted_block
from cosmoflow.stages.infer.tiles import read_region
from cosmoflow.stages.inputs.condition import expects_scatter, sample_blocks
from cosmoflow.stages.requests import ONCE, stored_shards
from cosmoflow.storage.fields import FLOWS
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.requests import Requests, Shards, block_axes, count_spans, count_writes

_SAMPLED: Final = 64
"""Tasks of one worker that are followed; the others are taken to be like them."""

_CHECKED: Final = 2
"""Requests after each read of the velocity of a filter: is it still that of the filter."""


class CountedStore:
    """A store that counts requests and numbers read; what it returns takes no memory."""

    def __init__(self, stored: Shards) -> None:
        self.grid = stored.grid
        self.requests = self.numbers = 0
        self._stored = stored
        self._indexed: set[tuple[str, Lead, tuple[int, ...]]] = set()

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Count the requests for a block."""
        parts = FIELDS[name].parts
        shape = (parts,) if FIELDS[name].lead else ()
        # The metadata of a flow are read again for every block.
        self.requests += name in FLOWS
        for part in _inside(block, self.grid):
            for shard, cells in _shards(part, self._stored.shard):
                spans, partial = count_spans(self._stored, block_axes(cells), parts)
                self.requests += spans
                self.numbers += parts * self._chunk_cells(cells)
                if partial and (name, lead, shard) not in self._indexed:
                    self._indexed.add((name, lead, shard))
                    self.requests += 1
        return np.broadcast_to(np.float32(0.0), (*shape, *block.shape))

    def _chunk_cells(self, block: Block) -> int:
        """Return the cells of the chunks that a block touches."""
        chunk = self._stored.chunk
        return math.prod(
            min(-(-(origin + side) // chunk) * chunk, self.grid) - origin // chunk * chunk
            for origin, side in zip(block.origin, block.shape, strict=True)
        )


class CountedCache(CachedFields):
    """The cache of a worker, without its values."""

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Read the pieces that a block touches and the cache lacks."""
        shape = (FIELDS[name].parts,) if FIELDS[name].lead else ()
        for part in _inside(block, self.grid):
            ends = zip(part.origin, part.shape, strict=True)
            for _ in self._hold(name, lead, [slice(at, at + size) for at, size in ends], shape):
                pass
        return np.broadcast_to(np.float32(0.0), (*shape, *block.shape))

    def _own(self, view: NDArray[np.float32]) -> NDArray[np.float32]:
        return view


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a run reads and writes.

    Parameters
    ----------
    requests : Requests
        Requests to an object store.
    numbers : int
        Numbers of the chunks that workers read, those of halos included.
    """

    requests: Requests
    numbers: int


def count_traffic(
    work: Work, box: StoredBox, models: Sequence[VelocityModel], workers: int
) -> Traffic:
    """Return what a run reads and writes whose global velocities are stored already."""
    stored = stored_shards(box)
    blocks = grid_blocks(box.grid, work.layout.shard)
    tasks = work.tasks(box.grid, [True] * len(blocks))
    store = CountedStore(stored)
    source: FieldSource = store
    if work.layout.cache:
        source = CountedCache(store, work.layout.piece, work.layout.cache)
    filtered = any(model.spec.filter is not None for model in models)
    flows = {
        flow
        for model in models
        for flow in (*range(len(model.smoothing)), *["wiener_velocity"] * bool(model.spec.filter))
    }
    variables = [("density", ()), *map(variable_of, sorted(flows, key=str))]
    geometries = [model.geometry for model in models]
    followed = _tasks_of_one(work, tasks, box.grid, workers)
    for shards in followed:
        block = wanted_block([blocks[shard] for shard in shards], work.region, work.halo)
        region = read_region(block, geometries, work.layout, box.grid)
        for name, lead in variables:
            source.read_block(name, region, lead=lead)
    reads = store.requests + _CHECKED * filtered * len(followed)
    checked = count_scatter_check(box) if any(map(expects_scatter, models)) else 0
    written = count_writes(len(work.variables)) * sum(map(len, tasks))
    share = len(tasks) / len(followed)
    requests = Requests(get=checked + round(reads * share)) + written + ONCE["infer"]
    return Traffic(requests, round(store.numbers * share))


def count_scatter_check(box: StoredBox) -> int:
    """Return the requests of :func:`cosmoflow.stages.inputs.condition.check_scatter`."""
    store = CountedStore(stored_shards(box))
    for block in sample_blocks(box.grid):
        store.read_block("density", block)
    return store.requests


def _tasks_of_one(
    work: Work, tasks: Sequence[tuple[int, ...]], grid: int, workers: int
) -> list[tuple[int, ...]]:
    """Return the first tasks of one worker."""
    if workers == 1:
        return list(tasks[:_SAMPLED])
    columns: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for task in tasks:
        columns.setdefault(work.column_of(grid, task), []).append(task)
    # Where there are fewer columns than workers, each takes a part of one.
    parts = -(-workers // len(columns))
    mine = list(columns.values())[::workers]
    return [task for column in mine for task in column[: -(-len(column) // parts)]][:_SAMPLED]


def _inside(block: Block, grid: int) -> Iterator[Block]:
    """Yield the parts of a block that wraps around."""
    axes = [
        list(axis_runs(origin, length, grid))
        for origin, length in zip(block.origin, block.shape, strict=True)
    ]
    for (x, _), (y, _), (z, _) in itertools.product(*axes):
        yield Block(
            (x.start, y.start, z.start), (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        )


def _shards(block: Block, size: int) -> Iterator[tuple[tuple[int, ...], Block]]:
    """Yield the shards that a block touches, and its cells in each."""
    axes = []
    for origin, length in zip(block.origin, block.shape, strict=True):
        end = origin + length
        axes.append(
            [
                (number, max(origin, number * size), min(end, (number + 1) * size))
                for number in range(origin // size, -(-end // size))
            ]
        )
    for x, y, z in itertools.product(*axes):
        yield (
            (x[0], y[0], z[0]),
            Block((x[1], y[1], z[1]), (x[2] - x[1], y[2] - y[1], z[2] - z[1])),
        )
