"""Batches of bounded size, into which particles that arrive in parts are collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cosmoflow.numerics.painting.blocks import Piece

_SMALLEST: Final = 1 << 18


def batch_size(cells: int) -> int:
    """Return how many particles to paint at once into some cells.

    The sums of all cells are read and written for each batch, which takes a fifth of the time if
    there are as many particles as cells. There are a quarter more, so that one batch usually holds
    all particles of a shard at one particle a cell.
    """
    return max(_SMALLEST, cells + cells // 4)


def cut_batches(parts: Iterable[Piece], rows: int) -> Iterator[tuple[list[Piece], bool]]:
    """Collect particles into batches, in the order in which they arrive.

    The caller may empty the list of a batch to release its particles before the next one is
    collected.

    Parameters
    ----------
    parts : iterable of Piece
        Particles, in parts of any size.
    rows : int
        Maximum particles of a batch.

    Yields
    ------
    batch : list of Piece
        Views of the parts; empty if there are no parts.
    more : bool
        Whether another batch follows.
    """
    batch: list[Piece] = []
    room = rows
    for part in parts:
        for piece in _cut(part, rows):
            count = len(piece[0])
            if count > room:
                yield batch, True
                batch, room = [], rows
            batch.append(piece)
            room -= count
    yield batch, False


def _cut(part: Piece, rows: int) -> Iterator[Piece]:
    """Cut particles into pieces of at most ``rows``."""
    position, velocity, mass = part
    for start in range(0, len(position), rows):
        own = slice(start, start + rows)
        yield (
            position[own],
            None if velocity is None else velocity[own],
            None if mass is None else mass[own],
        )
