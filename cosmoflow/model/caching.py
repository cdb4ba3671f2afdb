"""A box that keeps the most recently read pieces in memory."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.model.sources import FieldSource, Lead
from cosmoflow.numerics.blocks import (
    Block,
    Slices,
    bounding_block,
    overlap,
    periodic_runs,
    place,
)
from cosmoflow.numerics.field_table import FIELDS

Key = tuple[str, Lead, tuple[int, ...]]


_READ_AT_ONCE: Final = 4
"""Largest read, as a part of the capacity. Its pieces are copied, so both are held for a while."""


class CachedFields:
    """A box read in whole pieces, with a least-recently-used cache.

    Neighbouring blocks with halos touch the same chunks of a store: without a cache, blocks of two
    chunks with a halo of less than one decode every chunk eight times. Pieces that are missing side
    by side are read together, so that a store is asked for them in few requests.

    Parameters
    ----------
    source : FieldSource
        The box.
    piece : (int, int, int)
        Cells along each axis of a piece: one chunk of the store or several.
    capacity : int
        Most bytes to keep.
    at_once : int
        Reads of missing pieces at the same time, in threads: for sources that take long to answer.
    """

    def __init__(
        self,
        source: FieldSource,
        piece: tuple[int, int, int],
        capacity: int,
        *,
        at_once: int = 1,
    ) -> None:
        self._source = source
        self._piece = piece
        self._capacity = capacity
        self._at_once = at_once
        self._held: OrderedDict[Key, NDArray[np.float32]] = OrderedDict()
        self._size = 0

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return self._source.grid

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Return a periodic block of a variable."""
        shape = (FIELDS[name].parts,) if FIELDS[name].lead else ()
        out = np.empty((*shape, *block.shape), np.float32)
        runs = list(periodic_runs(block, self.grid))
        if self._at_once > 1:
            self._read_ahead(name, lead, [source for source, _ in runs], shape)
        for source, target in runs:
            self._join(name, lead, source, out[(..., *target)])
        return out

    def _read_ahead(
        self, name: str, lead: Lead, parts: Sequence[Slices], shape: tuple[int, ...]
    ) -> None:
        """Read the missing pieces of some parts side by side, if all that they touch can be kept.

        These are the reads that would otherwise follow one another.
        """
        wanted = [self._touched(part) for part in parts]
        indices = {index for touched in wanted for index in itertools.product(*touched)}
        if len(indices) * self._piece_bytes(shape) > self._capacity:
            return
        self._touch(name, lead, indices)
        asked: set[Key] = set()
        cuboids: list[list[range]] = []
        for touched in wanted:
            for index in itertools.product(*touched):
                key = (name, lead, index)
                if key not in self._held and key not in asked:
                    cuboids.append(self._missing(name, lead, index, touched, shape, asked))
                    asked |= {(name, lead, one) for one in itertools.product(*cuboids[-1])}
        with ThreadPoolExecutor(self._at_once) as pool:
            for some in self._groups(cuboids, shape):
                values = pool.map(lambda cuboid: self._ask(name, lead, cuboid), some)
                for cuboid, found in zip(some, values, strict=True):
                    self._keep(name, lead, cuboid, found)

    def _groups(
        self, cuboids: Sequence[list[range]], shape: tuple[int, ...]
    ) -> Iterator[list[list[range]]]:
        """Yield groups of cuboids that together are no more than the largest read."""
        most = self._most_pieces(shape)
        group: list[list[range]] = []
        for cuboid in cuboids:
            if group and sum(math.prod(map(len, one)) for one in (*group, cuboid)) > most:
                yield group
                group = []
            group.append(cuboid)
        if group:
            yield group

    def _join(self, name: str, lead: Lead, part: Slices, out: NDArray[np.float32]) -> None:
        """Assemble a part inside the grid from pieces."""
        x, y, z = part
        block = Block(
            (x.start, y.start, z.start), (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        )
        for index in self._hold(name, lead, part, out.shape[:-3]):
            inside, source = overlap(block, self._cells(index))
            out[(..., *inside)] = self._held[name, lead, index][(..., *source)]

    def _hold(
        self, name: str, lead: Lead, part: Sequence[slice], shape: tuple[int, ...]
    ) -> Iterator[tuple[int, ...]]:
        """Yield the pieces that a part touches; each is held when its turn comes."""
        touched = self._touched(part)
        self._touch(name, lead, itertools.product(*touched))
        for index in itertools.product(*touched):
            if (name, lead, index) not in self._held:
                self._read(name, lead, self._missing(name, lead, index, touched, shape))
            self._held.move_to_end((name, lead, index))
            yield index

    def _touched(self, part: Sequence[slice]) -> list[range]:
        """Return the pieces along each axis that a part touches."""
        return [
            range(axis.start // side, -(-axis.stop // side))
            for axis, side in zip(part, self._piece, strict=True)
        ]

    def _touch(self, name: str, lead: Lead, indices: Iterable[tuple[int, ...]]) -> None:
        """Note that pieces are needed, so that reading others does not release them."""
        for index in indices:
            if (name, lead, index) in self._held:
                self._held.move_to_end((name, lead, index))

    def _piece_bytes(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape) * math.prod(self._piece)

    def _most_pieces(self, shape: tuple[int, ...]) -> int:
        """Return the most pieces that are read at the same time."""
        return self._capacity // (_READ_AT_ONCE * self._piece_bytes(shape))

    def _missing(
        self,
        name: str,
        lead: Lead,
        first: tuple[int, ...],
        touched: Sequence[range],
        shape: tuple[int, ...],
        asked: Collection[Key] = (),
    ) -> list[range]:
        """Return a cuboid of missing pieces, from the first on, to read at once."""
        most = self._most_pieces(shape)
        found = [range(index, index + 1) for index in first]
        for axis in (2, 1, 0):
            for end in range(first[axis] + 1, touched[axis].stop):
                more = [*found]
                more[axis] = range(end, end + 1)
                if math.prod(map(len, found)) + math.prod(map(len, more)) > most or any(
                    (name, lead, index) in self._held or (name, lead, index) in asked
                    for index in itertools.product(*more)
                ):
                    break
                found[axis] = range(first[axis], end + 1)
        return found

    def _cells(self, index: tuple[int, ...]) -> Block:
        """Return the cells of a piece; the last one along an axis may be shorter."""
        x, y, z = (number * side for number, side in zip(index, self._piece, strict=True))
        nx, ny, nz = (
            min(side, self.grid - origin)
            for origin, side in zip((x, y, z), self._piece, strict=True)
        )
        return Block((x, y, z), (nx, ny, nz))

    def _read(self, name: str, lead: Lead, pieces: Sequence[range]) -> None:
        """Read a cuboid of pieces and keep each."""
        self._keep(name, lead, pieces, self._ask(name, lead, pieces))

    def _whole(self, pieces: Sequence[range]) -> Block:
        """Return the cells of a cuboid of pieces."""
        corners = [tuple(end(axis) for axis in pieces) for end in (min, max)]
        return bounding_block([self._cells(corner) for corner in corners])

    def _ask(self, name: str, lead: Lead, pieces: Sequence[range]) -> NDArray[np.float32]:
        return self._source.read_block(name, self._whole(pieces), lead=lead)

    def _keep(
        self, name: str, lead: Lead, pieces: Sequence[range], values: NDArray[np.float32]
    ) -> None:
        """Keep a cuboid of pieces; release those that were not used for longest."""
        whole = self._whole(pieces)
        for index in itertools.product(*pieces):
            piece = values[(..., *place(self._cells(index), whole))]
            if piece.size < values.size:
                piece = self._own(piece)
            self._held[name, lead, index] = piece
            self._size += piece.nbytes
        while self._size > self._capacity and len(self._held) > 1:
            self._size -= self._held.popitem(last=False)[1].nbytes

    def _own(self, view: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy: a view would keep all that was read with it."""
        return view.copy()
