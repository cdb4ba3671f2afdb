"""Real fields of a box to transform in slabs: stored variables and derived fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.numerics.quantities import QUANTITIES, Quantity, wrap
from cosmoflow.stages.inputs.readers import StoreReader
from cosmoflow.stages.slabs.transform import Blocks, Fields
from cosmoflow.storage.fields import FieldStore, reopen_fields


class Source(Protocol):
    """A real field of a box, read in slabs of planes by any process."""

    @property
    def components(self) -> int:
        """1 for a scalar, 3 for a vector."""

    @property
    def held(self) -> float:
        """Most numbers held per cell of a slab while the field is read and made."""

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Components of each stored variable that is read, and the cells read around a block."""

    @property
    def working(self) -> int:
        """Additional numbers per cell of a block that is made at once."""

    def fields(self, x: slice) -> Fields:
        """Return the field: its leading dimension and its planes ``(components, b, n, n)``."""

    def read(self, block: Block) -> Tensor:
        """Return the values ``(components, nx, ny, nz)`` over a block."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a fields store.

    Parameters
    ----------
    url, name : str
        URL of the store, and name of the variable.
    components : int
        1 for a scalar, 3 for a vector.
    lead : tuple of int
        Fixed indices into leading dimensions, such as the smoothing scale.
    offset : float
        Value subtracted from every cell: 1 for a density over its mean, so that a large mean does
        not add rounding to the transform of the fluctuations.
    """

    url: str
    name: str
    components: int
    lead: tuple[int, ...] = ()
    offset: float = 0.0

    @property
    def held(self) -> float:
        """Numbers held per cell: the values alone."""
        return self.components

    @property
    def reads(self) -> list[tuple[int, int]]:
        """The variable alone."""
        return [(self.components, 0)]

    @property
    def working(self) -> int:
        """Additional numbers per cell: none."""
        return 0

    def fields(self, x: slice) -> Fields:
        """Return the variable and its planes."""
        return [((self.components,), self._planes(x))]

    def _planes(self, x: slice) -> Blocks:
        store = reopen_fields(self.url, self.name)
        values = self._read(store, Block((x.start, 0, 0), (x.stop - x.start, *2 * (store.grid,))))
        for own in slabs.plane_blocks(values.shape[1], store.grid):
            yield own, values[:, own]

    def read(self, block: Block) -> Tensor:
        """Return the values in a block."""
        return self._read(reopen_fields(self.url, self.name), block)

    def _read(self, store: FieldStore, block: Block) -> Tensor:
        values = torch.from_numpy(store.read_block(self.name, block, lead=self.lead))
        if self.offset:
            values -= self.offset
        return values.view(self.components, *block.shape)


@dataclass(frozen=True, slots=True)
class Derived:
    """A field computed from density and velocity.

    Parameters
    ----------
    reader : StoreReader
        Reader of both fields.
    cell : float
        Side of a cell, Mpc/h.
    field : str
        Name in :data:`cosmoflow.numerics.quantities.QUANTITIES`.
    """

    reader: StoreReader
    cell: float
    field: str

    @property
    def rule(self) -> Quantity:
        """Rule that makes the field."""
        return QUANTITIES[self.field]

    @property
    def components(self) -> int:
        """1 for a scalar, 3 for a vector."""
        return self.rule.components

    @property
    def held(self) -> float:
        """Numbers held per cell: the inputs of the slab; the field is made a few planes at once."""
        return self.reader.held(self.rule.reads)

    @property
    def reads(self) -> list[tuple[int, int]]:
        """The inputs of the rule, with its halo."""
        variables = [one for name in self.rule.reads for one in self.reader.variables(name)]
        return [(parts, self.rule.halo) for _, _, parts in variables]

    @property
    def working(self) -> int:
        """Additional numbers per cell that the rule needs."""
        return self.rule.working

    def fields(self, x: slice) -> Fields:
        """Return the field and its planes."""
        return [((self.components,), self._planes(x))]

    def _planes(self, x: slice) -> Blocks:
        rule, grid = self.rule, self.reader.grid
        planes = x.stop - x.start
        block = Block((x.start - rule.halo, 0, 0), (planes + 2 * rule.halo, grid, grid))
        read = {name: torch.from_numpy(self.reader.read(name, block)) for name in rule.reads}
        for own in slabs.plane_blocks(planes, grid):
            around = slice(own.start, own.stop + 2 * rule.halo)
            values = {
                name: wrap(field[..., around, :, :], rule.halo) for name, field in read.items()
            }
            made = rule.make(values, self.cell)
            yield own, made.view(rule.components, own.stop - own.start, grid, grid)

    def read(self, block: Block) -> Tensor:
        """Return the values in a block."""
        rule = self.rule
        around = grow(block, rule.halo)
        values = {name: torch.from_numpy(self.reader.read(name, around)) for name in rule.reads}
        return rule.make(values, self.cell).view(rule.components, *block.shape)
