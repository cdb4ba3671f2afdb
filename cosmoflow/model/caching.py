"""A box that keeps the most recently read pieces in memory."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from cosmoflow.model.sources import FieldSource, Lead
from cosmoflow.numerics.blocks import Block, overlap, read_periodic

Key = tuple[str, Lead, tuple[int, ...]]


class CachedFields:
    """A box read in whole pieces, with a least-recently-used cache.

    Neighbouring blocks with halos touch the same chunks of a store: without a cache, blocks of two
    chunks with a halo of less than one decode every chunk eight times.

    Parameters
    ----------
    source : FieldSource
        The box.
    piece : int
        Cells per axis of a piece: a chunk of the store.
    capacity : int
        Most bytes to keep.
    """

    def __init__(self, source: FieldSource, piece: int, capacity: int) -> None:
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
        corner = tuple(origin % self.grid // self._piece for origin in block.origin)
        shape = self._read_piece(name, lead, corner).shape[:-3]

        def read(part: tuple[slice, ...]) -> NDArray[np.float32]:
            return self._join(name, lead, part, shape)

        return read_periodic(read, shape, block, self.grid)

    def _join(
        self, name: str, lead: Lead, part: tuple[slice, ...], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Assemble a part inside the grid from pieces."""
        x, y, z = part
        block = Block(
            (x.start, y.start, z.start), (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        )
        out = np.empty((*shape, *block.shape), np.float32)
        touched = (range(axis.start // self._piece, -(-axis.stop // self._piece)) for axis in part)
        for index in itertools.product(*touched):
            inside, source = overlap(block, self._cells(index))
            out[(..., *inside)] = self._read_piece(name, lead, index)[(..., *source)]
        return out

    def _cells(self, index: tuple[int, ...]) -> Block:
        """Return the cells of a piece; the last one along an axis may be shorter."""
        x, y, z = (number * self._piece for number in index)
        nx, ny, nz = (min(self._piece, self.grid - origin) for origin in (x, y, z))
        return Block((x, y, z), (nx, ny, nz))

    def _read_piece(self, name: str, lead: Lead, index: tuple[int, ...]) -> NDArray[np.float32]:
        key = (name, lead, index)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        piece = self._source.read_block(name, self._cells(index), lead=lead)
        self._held[key] = piece
        self._size += piece.nbytes
        while self._size > self._capacity and len(self._held) > 1:
            self._size -= self._held.popitem(last=False)[1].nbytes
        return piece
