"""Sources of a periodic box's fields: a store, main memory, a device, or a block of a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.blocks import Block, grow, place, read_periodic

Lead = tuple[int, ...]


class FieldSource(Protocol):
    """A periodic box that blocks are read from, such as a fields store."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Return a periodic block of a variable."""


class MemoryFields:
    """A box whose fields are in memory.

    Parameters
    ----------
    fields : mapping of str to array
        Shapes ``(..., n, n, n)``, float32.
    """

    def __init__(self, fields: Mapping[str, NDArray[np.float32]]) -> None:
        self._fields = fields

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return int(next(iter(self._fields.values())).shape[-1])

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Return a periodic block of a variable."""
        field = self._fields[name][lead]
        return read_periodic(lambda part: field[(..., *part)], field.shape[:-3], block, self.grid)


class DeviceFields:
    """A box whose fields are in the memory of a device, so that crops never leave it.

    Parameters
    ----------
    fields : mapping of str to array
        Shapes ``(..., n, n, n)``, float32.
    device : torch.device
        Device that holds the fields.
    """

    def __init__(
        self, fields: Mapping[str, NDArray[np.float32]], device: torch.device | str
    ) -> None:
        self._fields = {
            name: torch.from_numpy(np.ascontiguousarray(field)).to(device)
            for name, field in fields.items()
        }

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return int(next(iter(self._fields.values())).shape[-1])

    def read_tensor(self, name: str, block: Block, *, lead: Lead = ()) -> Tensor:
        """Return a periodic block of a variable, on the device."""
        part = self._fields[name][lead]
        for axis, (origin, length) in enumerate(
            zip(block.origin, block.shape, strict=True), start=-3
        ):
            cells = torch.arange(origin, origin + length, device=part.device) % self.grid
            part = part.index_select(axis, cells)
        return part

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Return a periodic block of a variable, in main memory."""
        return np.asarray(self.read_tensor(name, block, lead=lead).cpu().numpy(), np.float32)


class BlockFields:
    """A block of a box, read once, for crops inside it.

    Parameters
    ----------
    source : FieldSource
        The box.
    variables : sequence of (str, tuple of int)
        Names and leading indices to read.
    block : Block
        Cells to read, including the halo; coordinates may extend past the grid.
    """

    def __init__(
        self, source: FieldSource, variables: Sequence[tuple[str, Lead]], block: Block
    ) -> None:
        self.grid = source.grid
        self._block = block
        self._fields = {
            (name, lead): source.read_block(name, block, lead=lead) for name, lead in variables
        }

    def read_block(self, name: str, block: Block, *, lead: Lead = ()) -> NDArray[np.float32]:
        """Return cells inside the block."""
        return self._fields[name, lead][(..., *place(block, self._block))]


Flow = int | str
"""A global velocity: an index along the radii of ``linear_velocity``, or the name of a variable."""


def variable_of(flow: Flow) -> tuple[str, Lead]:
    """Return the variable that a flow is stored in, and the leading indices to fix."""
    return ("linear_velocity", (flow,)) if isinstance(flow, int) else (flow, ())


def read_tensor(source: FieldSource, name: str, block: Block, lead: Lead = ()) -> Tensor:
    """Read a block of a variable as a tensor, on the device that holds it."""
    if isinstance(source, DeviceFields):
        return source.read_tensor(name, block, lead=lead)
    return torch.from_numpy(source.read_block(name, block, lead=lead))


def read_inputs(
    source: FieldSource, flows: Sequence[Flow], block: Block, halo: int
) -> tuple[Tensor, Tensor]:
    """Read the inputs that a network needs to predict a block.

    Returns
    -------
    density : Tensor
        Shape ``(nx + 2 halo, ...)``.
    flows : Tensor
        Shape ``(flows, 3, nx + 2 halo, ...)``, km/s.
    """
    haloed = grow(block, halo)
    density = read_tensor(source, "density", haloed)
    found = [read_tensor(source, name, haloed, lead) for name, lead in map(variable_of, flows)]
    return density, torch.stack(found) if found else density.new_empty((0, 3, *haloed.shape))
