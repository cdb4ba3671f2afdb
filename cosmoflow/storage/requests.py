"""Numbers of requests to an object store, as :mod:`cosmoflow.storage.shards` sends them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cosmoflow.numerics.blocks import Block, axis_runs
from cosmoflow.storage.shards import PIECE, is_read_whole, join_spans

Interval = tuple[int, int]
"""First cell and number of cells along an axis."""

_Range = tuple[int, int, int]
"""First chunk along an axis of a shard, the chunk after the last, and how many are in the grid."""

_NUMBER: Final = 4
"""Bytes of a stored number."""
_COMPRESSION: Final = 1.12
"""Bytes of a chunk over stored bytes: decides where a request ends (:data:`PIECE`)."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Numbers of requests.

    Parameters
    ----------
    put, get : int
        Requests that write an object, and that read one or a part of one.
    """

    put: int = 0
    get: int = 0

    def __add__(self, other: Requests) -> Requests:
        """Return the requests of both."""
        return Requests(self.put + other.put, self.get + other.get)

    def __mul__(self, times: int) -> Requests:
        """Return the requests of ``times`` repetitions."""
        return Requests(self.put * times, self.get * times)


@dataclass(frozen=True, slots=True)
class Shards:
    """How the variables of a fields store are stored.

    Parameters
    ----------
    grid, shard, chunk : int
        Cells per axis of the grid, of a shard and of a chunk.
    """

    grid: int
    shard: int
    chunk: int

    @property
    def count(self) -> int:
        """Number of shards of a variable."""
        return int((-(-self.grid // self.shard)) ** 3)


def block_axes(block: Block) -> list[list[Interval]]:
    """Return the interval of one block along x, y and z."""
    return [[interval] for interval in zip(block.origin, block.shape, strict=True)]


def count_reads(
    stored: Shards, axes: Sequence[Sequence[Interval]], parts: int, *, workers: int = 1, of: int = 0
) -> int:
    """Return the number of requests that read blocks of a variable.

    Parameters
    ----------
    axes : sequence of sequence of (int, int)
        Intervals along x, y and z; each combination of three is a block, which may wrap around.
    parts, of : int
        Components that a block is read for, and components of the variable; by default all.
    workers : int
        Processes among which the blocks are divided. A process keeps the indices of shards.
    """
    spans, partial = count_spans(stored, axes, parts, of=of)
    return spans + count_distinct(partial, stored.count, workers)


def count_spans(
    stored: Shards, axes: Sequence[Sequence[Interval]], parts: int, *, of: int = 0
) -> tuple[int, int]:
    """Return the requests for chunks, and how many reads of a shard need its index before."""
    kinds = [_kinds(axis, stored) for axis in axes]
    total = partial = 0
    for x, y, z in itertools.product(*(axis.items() for axis in kinds)):
        count = x[1] * y[1] * z[1]
        spans, indexed = _count_spans(stored, (x[0], y[0], z[0]), parts, of or parts)
        total += count * spans
        partial += count * indexed
    return total, partial


def count_distinct(draws: int, things: int, workers: int) -> int:
    """Return the mean number of pairs of thing and worker, for draws that fall to any worker."""
    things = min(draws, things)
    if not things or workers == 1:
        return things
    missed: float = (1.0 - 1.0 / workers) ** (draws / things)
    return round(things * workers * (1.0 - missed))


def _kinds(axis: Iterable[Interval], stored: Shards) -> Counter[_Range]:
    """Count the ranges of chunks, within a shard, that intervals along an axis touch."""
    found: Counter[_Range] = Counter()
    for origin, length in axis:
        for run, _ in axis_runs(origin, length, stored.grid):
            for shard in range(run.start // stored.shard, -(-run.stop // stored.shard)):
                first = shard * stored.shard
                low, high = max(run.start, first), min(run.stop, first + stored.shard)
                size = min(stored.shard, stored.grid - first)
                chunks = (low - first, high - first + stored.chunk - 1, size + stored.chunk - 1)
                begin, end, there = (cells // stored.chunk for cells in chunks)
                found[begin, end, there] += 1
    return found


@lru_cache(maxsize=4096)
def _count_spans(
    stored: Shards, ranges: tuple[_Range, ...], parts: int, of: int
) -> tuple[int, int]:
    """Return the requests for some chunks of a shard, and 1 if they need its index, else 0."""
    side = -(-stored.shard // stored.chunk)
    chunks = list(itertools.product(*(range(low, high) for low, high, _ in ranges)))
    size = _NUMBER * stored.chunk**3
    if is_read_whole(parts * len(chunks), of * side**3, size):
        return 1, 0
    stored_size = size / _COMPRESSION
    # The chunks of a shard that lie outside the grid are not stored.
    nx, ny, nz = (there for _, _, there in ranges)
    places = (((part * nx + x) * ny + y) * nz + z for part in range(parts) for x, y, z in chunks)
    spans = ((int(place * stored_size), int((place + 1) * stored_size)) for place in places)
    return len(join_spans(spans)), 1


def count_writes(variables: int) -> Requests:
    """Return the requests that write one shard of some variables and mark it as finished.

    The group is read before and after, with the metadata of every variable and of the ledger. At
    the end of a run the ledger is read.
    """
    return Requests(put=variables + 1, get=variables + 4)


def count_rows(pieces: Sequence[tuple[int, int]], shard: int, chunk: int, width: int) -> int:
    """Return the number of requests that read a column of particles in pieces.

    Parameters
    ----------
    pieces : sequence of (int, int)
        First particle of each piece, and the particle after its last.
    shard, chunk : int
        Particles of a shard and of a chunk.
    width : int
        Bytes of a particle in the column.
    """
    total, indexed = 0, set[int]()
    stored = width * chunk / _COMPRESSION
    most = max(1, int(PIECE / stored))
    for start, stop in pieces:
        for number in range(start // shard, -(-stop // shard)):
            low, high = max(start, number * shard), min(stop, (number + 1) * shard)
            wanted = -(-high // chunk) - low // chunk
            if is_read_whole(wanted, shard // chunk, width * chunk):
                total += 1
            else:
                total += -(-wanted // most)
                indexed.add(number)
    return total + len(indexed)
