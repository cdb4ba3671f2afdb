"""How a comparison is cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cosmoflow.numerics.blocks import Block, axis_blocks, central_block, grid_blocks, split_block
from cosmoflow.numerics.comparison.slices import Patch, plane_blocks


@dataclass(frozen=True, slots=True)
class Task:
    """A measurement in a part of the box.

    Parameters
    ----------
    kind : {"cells", "subboxes", "plane", "patch"}
        Sums over all cells, spectra of a group of sub-boxes, sums over the layers of the slice, or
        the fields of one method in the patch.
    block : Block
        The part of the box.
    name : str
        Method of the patch.
    """

    kind: Literal["cells", "subboxes", "plane", "patch"]
    block: Block
    name: str = ""


@dataclass(frozen=True)
class Cut:
    """Division of a box into tasks.

    Parameters
    ----------
    grid : int
        Cells per axis.
    block : int
        Cells per axis of a block.
    subbox : int
        Cells per axis of a sub-box; 0 where none fits.
    group : int
        Sub-boxes per axis of a task.
    memory : int
        Bytes of a worker that handles the tasks.
    """

    grid: int
    block: int
    subbox: int
    group: int
    memory: int

    @property
    def along(self) -> int:
        """Number of sub-boxes per axis."""
        return self.grid // self.subbox if self.subbox else 0

    def first_tasks(self) -> list[Task]:
        """Return the tasks that find the strongest infall, and those of the sub-boxes."""
        blocks = [Task("cells", block) for block in grid_blocks(self.grid, self.block)]
        if not self.subbox:
            return blocks
        centre = central_block(self.grid, self.subbox)
        groups = split_block(centre, self.group * self.subbox)
        return blocks + [Task("subboxes", group) for group in groups]

    def groups(self) -> list[tuple[int, int]]:
        """Return the first cell and the length of the groups of sub-boxes along each axis."""
        centre = central_block(self.grid, self.subbox)
        blocks = axis_blocks(centre.shape[0], self.group * self.subbox)
        return [(centre.origin[0] + start, size) for start, size in blocks]

    def last_tasks(self, patch: Patch, names: Sequence[str]) -> list[Task]:
        """Return the tasks that read what figures show of the truth and the methods."""
        planes = [Task("plane", block) for block in plane_blocks(patch, self.block)]
        return planes + [Task("patch", patch.block, name) for name in names]

    def count_tasks(self, names: int, box_size: float) -> int:
        """Return the number of all tasks."""
        patch = Patch.around((0, 0, 0), self.grid, box_size)
        blocks = len(axis_blocks(self.grid, self.block)) ** 3
        groups = len(axis_blocks(self.along, self.group)) ** 3
        return blocks + groups + len(self.last_tasks(patch, [""] * names))
