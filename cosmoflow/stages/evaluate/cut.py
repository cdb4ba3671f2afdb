"""How a comparison is cut into tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cosmoflow.numerics.blocks import Block, Triple, axis_blocks, central_block, intersect
from cosmoflow.numerics.comparison.slices import Patch, plane_blocks


@dataclass(frozen=True, slots=True)
class Task:
    """A measurement in a part of the box.

    Parameters
    ----------
    kind : {"cells", "plane", "patch"}
        Sums over all cells with the spectra of sub-boxes, sums over the layers of the slice, or the
        fields of one method in the patch.
    block : Block
        The part of the box.
    name : str
        Method of the patch.
    group : Block, optional
        The sub-boxes inside the block.
    """

    kind: Literal["cells", "plane", "patch"]
    block: Block
    name: str = ""
    group: Block | None = None


@dataclass(frozen=True)
class Cut:
    """Division of a box into tasks.

    Parameters
    ----------
    grid : int
        Cells per axis.
    block : (int, int, int)
        Cells of a block along x, y and z: whole sub-boxes, if there are any. Those at the ends of
        the box are larger by the cells in no sub-box.
    piece : int
        Cells per axis of what is read without a halo.
    subbox : int
        Cells per axis of a sub-box; 0 where none fits.
    memory : int
        Bytes of a worker that handles the tasks.
    """

    grid: int
    block: Triple
    piece: int
    subbox: int
    memory: int = 0

    @property
    def along(self) -> int:
        """Number of sub-boxes per axis."""
        return self.grid // self.subbox if self.subbox else 0

    def axes(self) -> list[list[tuple[int, int]]]:
        """Return the first cell and the length of the blocks along x, y and z."""
        return [self._axis(size) for size in self.block]

    def _axis(self, size: int) -> list[tuple[int, int]]:
        if not self.subbox:
            return axis_blocks(self.grid, size)
        inside = central_block(self.grid, self.subbox)
        first = inside.origin[0]
        edges = [first + start for start, _ in axis_blocks(inside.shape[0], size)]
        edges = [0, *edges[1:], self.grid]
        return [(low, high - low) for low, high in itertools.pairwise(edges)]

    def largest(self) -> Triple:
        """Return the cells along x, y and z of the largest block."""
        x, y, z = (max(size for _, size in axis) for axis in self.axes())
        return x, y, z

    def first_tasks(self) -> list[Task]:
        """Return the tasks that find the strongest infall and measure the sub-boxes."""
        inside = central_block(self.grid, self.subbox) if self.subbox else None
        blocks = [
            Block((x[0], y[0], z[0]), (x[1], y[1], z[1]))
            for x, y, z in itertools.product(*self.axes())
        ]
        return [
            Task("cells", one, group=None if inside is None else intersect(one, inside))
            for one in blocks
        ]

    def last_tasks(self, patch: Patch, names: Sequence[str]) -> list[Task]:
        """Return the tasks that read what figures show of the truth and the methods."""
        planes = [Task("plane", block) for block in plane_blocks(patch, self.piece)]
        return planes + [Task("patch", patch.block, name) for name in names]

    def count_tasks(self, names: int, box_size: float) -> int:
        """Return the number of all tasks."""
        patch = Patch.around((0, 0, 0), self.grid, box_size)
        blocks = math.prod(len(axis) for axis in self.axes())
        return blocks + len(self.last_tasks(patch, [""] * names))
