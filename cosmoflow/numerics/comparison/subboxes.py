"""Spectra of all sub-boxes of a box: their sum, and the errors from their scatter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from tempfile import SpooledTemporaryFile
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block, central_block
from cosmoflow.numerics.spectra import PowerSum, WaveBins
from cosmoflow.numerics.spectra.totals import Pair

Floats = NDArray[np.float64]

HELD_BYTES: Final = 64 << 20
"""Most bytes of spectra that are held in memory; more are kept in a file."""
_BATCH_BYTES: Final = 8 << 20
"""Bytes of spectra that are read at once."""


@dataclass(frozen=True, eq=False)
class SubboxSums:
    """Sums over the modes of some sub-boxes of one size.

    Attributes
    ----------
    names : tuple of str
        Names of the fields.
    bins : WaveBins
        Bins of a sub-box.
    pairs : tuple of (int, int)
        Pairs of readers of which the products are summed.
    products : ndarray
        Shape ``(boxes, fields, pairs, bins)``, float64; see :class:`PowerSum`.
    k, modes : ndarray
        Shape ``(bins,)``, float64: sum of the wavenumbers, h/Mpc, and number of wavevectors. They
        are the same in every sub-box and for every field.
    """

    names: tuple[str, ...]
    bins: WaveBins
    pairs: tuple[Pair, ...]
    products: Floats
    k: Floats
    modes: Floats

    @classmethod
    def of(cls, boxes: Sequence[Mapping[str, PowerSum]]) -> Self:
        """Join the sums of sub-boxes, by name of the field."""
        first = next(iter(boxes[0].values()))
        products = np.stack([[one.products[:, 0] for one in box.values()] for box in boxes])
        return cls(tuple(boxes[0]), first.bins, first.pairs, products, first.k, first.modes)

    def fields(self) -> dict[str, PowerSum]:
        """Return the sums of each field, with sub-boxes along the last axis but one.

        Returns
        -------
        dict of PowerSum
            ``products`` have the shape ``(pairs, 1, boxes, bins)``: power and spectra of one field
            are computed for all sub-boxes at once.
        """
        return {
            name: PowerSum(self.bins, self.pairs, one.swapaxes(0, 1)[:, None], self.k, self.modes)
            for name, one in zip(self.names, self.products.swapaxes(0, 1), strict=True)
        }


class Subboxes:
    """Spectra of all sub-boxes of a box, added in any order.

    Errors need the spectra of every sub-box, of which a large box has hundreds of thousands. Beyond
    :data:`HELD_BYTES` they are in a file without a name, which ends with the process.

    Parameters
    ----------
    grid, side : int
        Cells per axis of the box and of a sub-box; 0 for no sub-boxes.
    folder : str, optional
        Folder of the file; by default that of the system for temporary files.

    Attributes
    ----------
    count : int
        Number of sub-boxes.
    """

    def __init__(self, grid: int, side: int, folder: str | None = None) -> None:
        self._along = grid // side if side else 0
        self._side = side
        self._corner = central_block(grid, side).origin if side else (0, 0, 0)
        self._file = SpooledTemporaryFile[bytes](HELD_BYTES, dir=folder)
        self._shared: SubboxSums | None = None
        self.count = self._along**3

    def close(self) -> None:
        """Free the memory or delete the file."""
        self._file.close()

    def put(self, group: Block, sums: SubboxSums) -> None:
        """Keep the spectra of a group of sub-boxes.

        Raises
        ------
        OSError
            The disk is full, or fails.
        """
        self._shared = sums
        x, y, z = (
            (first - corner) // self._side
            for first, corner in zip(group.origin, self._corner, strict=True)
        )
        _, ny, nz = (cells // self._side for cells in group.shape)
        for row, first in enumerate(range(0, len(sums.products), nz)):
            i, j = x + row // ny, y + row % ny
            self._file.seek(((i * self._along + j) * self._along + z) * sums.products[0].nbytes)
            self._file.write(sums.products[first : first + nz].tobytes())

    def total(self) -> dict[str, PowerSum]:
        """Return the sum over all sub-boxes of each field, added in C order."""
        return {
            name: replace(one, products=one.products[:, :, 0])
            for name, one in self._sum().fields().items()
        }

    def jackknife(self, statistics: Callable[[Mapping[str, PowerSum]], Floats]) -> Floats | None:
        """Return the errors of statistics of all sub-boxes; None for a single sub-box.

        Parameters
        ----------
        statistics : callable
            Function from the sums of each field over sub-boxes to curves ``(..., bins)``.

        Returns
        -------
        ndarray
            The errors of the curves, as :func:`cosmoflow.numerics.spectra.jackknife` defines them.
        """
        if self.count < 2:
            return None
        first, total = self._first, self._sum()
        rest = replace(total, k=total.k - first.k, modes=total.modes - first.modes)

        def leave_one_out() -> Iterator[Floats]:
            for batch in self._batches():
                others = replace(rest, products=total.products - batch)
                yield from np.moveaxis(statistics(others.fields()), -2, 0)

        mean = sum_in_order(leave_one_out()) / self.count
        scatter = sum_in_order((one - mean) ** 2 for one in leave_one_out())
        errors: Floats = np.sqrt((self.count - 1) / self.count * scatter)
        return errors

    def _sum(self) -> SubboxSums:
        first = self._first
        products = sum_in_order(box for batch in self._batches() for box in batch)
        k, modes = (sum_in_order(repeat(one, self.count)) for one in (first.k, first.modes))
        return replace(first, products=products[None], k=k, modes=modes)

    @property
    def _first(self) -> SubboxSums:
        if self._shared is None:
            raise RuntimeError("no sub-box was measured")
        return self._shared

    def _batches(self) -> Iterator[Floats]:
        """Yield the products of all sub-boxes in C order, a few MB at a time."""
        shape = self._first.products.shape[1:]
        size = self._first.products[0].nbytes
        step = max(1, _BATCH_BYTES // size)
        for start in range(0, self.count, step):
            self._file.seek(start * size)
            content = self._file.read(min(step, self.count - start) * size)
            yield np.frombuffer(content, np.float64).reshape(-1, *shape)


def sum_in_order(values: Iterable[Floats]) -> Floats:
    """Return the sum of arrays, added one after the other."""
    rest = iter(values)
    total = next(rest).copy()
    for one in rest:
        total += one
    return total
