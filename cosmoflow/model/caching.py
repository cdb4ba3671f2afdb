"""A box that keeps the most recently read pieces in memory."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
    """

    def __init__(self, source: FieldSource, piece: tuple[int, int, int], capacity: int) -> None:
        self._source = source
        self._piece = piece
        self._capacity = capacity
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
        for source, target in periodic_runs(block, self.grid):
            self._join(name, lead, source, out[(..., *target)])
        return out

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
        touched = [
            range(axis.start // side, -(-axis.stop // side))
            for axis, side in zip(part, self._piece, strict=True)
        ]
        # Those that are held already first, so that reading the others does not release them.
        for index in itertools.product(*touched):
            if (name, lead, index) in self._held:
                self._held.move_to_end((name, lead, index))
        for index in itertools.product(*touched):
            if (name, lead, index) not in self._held:
                self._read(name, lead, self._missing(name, lead, index, touched, shape))
            self._held.move_to_end((name, lead, index))
            yield index

    def _missing(
        self,
        name: str,
        lead: Lead,
        first: tuple[int, ...],
        touched: Sequence[range],
        shape: tuple[int, ...],
    ) -> list[range]:
        """Return a cuboid of missing pieces, from the first on, to read at once."""
        each = 4 * math.prod(shape) * math.prod(self._piece)
        most = self._capacity // (_READ_AT_ONCE * each)
        found = [range(index, index + 1) for index in first]
        for axis in (2, 1, 0):
            for end in range(first[axis] + 1, touched[axis].stop):
                more = [*found]
                more[axis] = range(end, end + 1)
                if math.prod(map(len, found)) + math.prod(map(len, more)) > most or any(
                    (name, lead, index) in self._held for index in itertools.product(*more)
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
        """Read a cuboid of pieces and keep each; release those that were not used for longest."""
        corners = [tuple(end(axis) for axis in pieces) for end in (min, max)]
        whole = bounding_block([self._cells(corner) for corner in corners])
        values = self._source.read_block(name, whole, lead=lead)
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
