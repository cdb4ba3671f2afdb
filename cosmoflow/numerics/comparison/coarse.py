"""Sums over coarse cells, to which blocks of any size contribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def first_cells(cells: int, bins: int) -> Integers:
    """Return the first cell of each coarse cell along an axis, then the number of cells.

    Cell ``i`` of ``n`` belongs to coarse cell ``floor(i m / n)`` of ``m``, whether or not ``m``
    divides ``n``: the assignment does not depend on how the box is cut.

    Parameters
    ----------
    cells, bins : int
        n and m, with m <= n.

    Returns
    -------
    (bins + 1,) int64
    """
    starts: Integers = -(-np.arange(bins + 1, dtype=np.int64) * cells // bins)
    return starts


def sum_runs(values: Floats, axis: int, edges: Integers) -> Floats:
    """Sum the runs of an axis that begin at the edges; the last run ends with the axis."""
    result: Floats = np.add.reduceat(values, edges, axis=axis)
    return result


class Runs:
    """Positions of the coarse cells within a block, axis by axis.

    Parameters
    ----------
    cells, bins : int
        Cells and coarse cells per axis of the box.
    origin, shape : sequence of int
        First cell and number of cells of the block along each axis; inside the grid.
    """

    def __init__(self, cells: int, bins: int, origin: Sequence[int], shape: Sequence[int]) -> None:
        starts = first_cells(cells, bins)
        self.origin: tuple[int, ...] = ()
        self.edges: list[Integers] = []
        for first, length in zip(origin, shape, strict=True):
            low, high = np.searchsorted(starts, (first, first + length - 1), "right") - 1
            self.origin = (*self.origin, int(low))
            self.edges.append(np.maximum(starts[low : high + 1] - first, 0))

    @property
    def shape(self) -> tuple[int, ...]:
        """Coarse cells of the block along each axis."""
        return tuple(len(edges) for edges in self.edges)

    def sum(self, values: Floats) -> Floats:
        """Return the sums over the coarse cells, from the last axis to the first."""
        for axis in reversed(range(len(self.edges))):
            values = sum_runs(values, axis - len(self.edges), self.edges[axis])
        return values

    def moments(self, values: Floats, origin: Sequence[int]) -> tuple[Floats, ...]:
        """Return the sums and the sums weighted with the cell's index along x, y and z."""
        index = [
            np.arange(n, dtype=np.float64) + o for o, n in zip(origin, values.shape, strict=True)
        ]
        x_edges, y_edges, z_edges = self.edges
        along_z = sum_runs(values, 2, z_edges)
        weighted = sum_runs(values * index[2], 2, z_edges)
        moment_z = sum_runs(sum_runs(weighted, 1, y_edges), 0, x_edges)
        moment_y = sum_runs(sum_runs(along_z * index[1][:, None], 1, y_edges), 0, x_edges)
        planes = sum_runs(along_z, 1, y_edges)
        moment_x = sum_runs(planes * index[0][:, None, None], 0, x_edges)
        return sum_runs(planes, 0, x_edges), moment_x, moment_y, moment_z


@dataclass(frozen=True, eq=False)
class CoarseSum:
    """Sums of quantities over coarse cells, of a box or of the part that blocks touch.

    Attributes
    ----------
    origin : tuple of int
        First coarse cell along each axis.
    values : ndarray
        Shape ``(quantities, *coarse cells)``, float64.
    """

    origin: tuple[int, ...]
    values: Floats

    @classmethod
    def zero(cls, quantities: int, bins: int, axes: int = 3) -> Self:
        """Return the sums of a whole box over no cells, to which parts are added."""
        return cls((0,) * axes, np.zeros((quantities, *(bins,) * axes)))

    def add(self, other: CoarseSum, first: int = 0) -> CoarseSum:
        """Add the sums of a part in place; copying the sums of a whole box would take too long.

        If ``other`` has fewer quantities, they are added to the quantities from ``first`` on.
        """
        place = tuple(
            slice(o - mine, o - mine + n)
            for o, mine, n in zip(other.origin, self.origin, other.values.shape[1:], strict=True)
        )
        self.values[(slice(first, first + len(other.values)), *place)] += other.values
        return self
