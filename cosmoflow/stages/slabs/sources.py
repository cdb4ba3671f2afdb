"""Real fields of a box to transform: stored variables and derived fields, read in bars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.quantities import QUANTITIES, Quantity, wrap
from cosmoflow.numerics.slabs import Bar, LineBlock
from cosmoflow.stages.inputs.readers import StoreReader
from cosmoflow.stages.slabs.transform import Fields
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.reopening import reopen_fields


class Source(Protocol):
    """Real fields of a box, read in bars by any process."""

    @property
    def transforms(self) -> int:
        """Number of fields."""

    @property
    def components(self) -> int:
        """Numbers per cell of all fields: 1 for a scalar, 3 for a vector."""

    @property
    def numbers(self) -> int:
        """Numbers per cell that are read."""

    @property
    def held(self) -> float:
        """Most numbers held per cell of a bar while the field is read and made."""

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Components of each stored variable that is read, and the cells read around a block."""

    @property
    def working(self) -> int:
        """Additional numbers per cell of a block that is made at once."""

    def fields(self, bar: Bar) -> Fields:
        """Yield the leading dimension and the lines ``(components, a, b, n)`` of each field."""

    def read(self, block: Block) -> Tensor:
        """Return the values ``(components, nx, ny, nz)`` of a single field over a block."""


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
    def transforms(self) -> int:
        """One field."""
        return 1

    @property
    def numbers(self) -> int:
        """Numbers read per cell: the values alone."""
        return self.components

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

    def fields(self, bar: Bar) -> Fields:
        """Return the variable and its lines."""
        return [((self.components,), self._lines(bar))]

    def _lines(self, bar: Bar) -> Iterator[LineBlock]:
        store = reopen_fields(self.url, self.name)
        values = self._read(store, bar.block(store.grid))
        for own in slabs.line_blocks(bar.shape, store.grid):
            yield own, partial(values.__getitem__, (slice(None), own))

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
    """Fields computed from one reading of density and velocity.

    Parameters
    ----------
    reader : StoreReader
        Reader of both.
    cell : float
        Side of a cell, Mpc/h.
    names : tuple of str
        Names of the fields in :data:`cosmoflow.numerics.quantities.QUANTITIES`.
    """

    reader: StoreReader
    cell: float
    names: tuple[str, ...]

    @property
    def rules(self) -> list[Quantity]:
        """Rules that make the fields."""
        return [QUANTITIES[name] for name in self.names]

    @property
    def transforms(self) -> int:
        """Number of fields."""
        return len(self.names)

    @property
    def components(self) -> int:
        """Numbers per cell of all fields."""
        return sum(rule.components for rule in self.rules)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Variables from which the fields are made."""
        return tuple(sorted({name for rule in self.rules for name in rule.reads}))

    @property
    def numbers(self) -> int:
        """Numbers read per cell: density and velocity, or one of them."""
        return sum(FIELDS[name].parts for name in self.inputs)

    @property
    def held(self) -> float:
        """Numbers held per cell: the inputs of the bar; fields are made a few lines at once."""
        return self.reader.held(self.inputs)

    @property
    def reads(self) -> list[tuple[int, int]]:
        """The inputs, with the largest halo of the rules."""
        variables = [one for name in self.inputs for one in self.reader.variables(name)]
        return [(parts, self.halo) for _, _, parts in variables]

    @property
    def halo(self) -> int:
        """Most cells around a block from which a field is made."""
        return max(rule.halo for rule in self.rules)

    @property
    def working(self) -> int:
        """Most additional numbers per cell that a rule needs."""
        return max(rule.working for rule in self.rules)

    def fields(self, bar: Bar) -> Fields:
        """Yield each field and its lines."""
        halo = self.halo
        block = bar.block(self.reader.grid, halo)
        read = {name: torch.from_numpy(self.reader.read(name, block)) for name in self.inputs}
        for rule in self.rules:
            own = slice(halo - rule.halo, rule.halo - halo or None)
            values = {name: field[..., own, own, :] for name, field in read.items()}
            yield (rule.components,), self._lines(rule, values, bar)

    def _lines(self, rule: Quantity, read: dict[str, Tensor], bar: Bar) -> Iterator[LineBlock]:
        def make(own: slice) -> Tensor:
            around = slice(own.start, own.stop + 2 * rule.halo)
            values = {name: wrap(read[name][..., around, :, :], rule.halo) for name in rule.reads}
            made = rule.make(values, self.cell)
            return made.view(rule.components, own.stop - own.start, bar.shape[1], self.reader.grid)

        for own in slabs.line_blocks(bar.shape, self.reader.grid):
            yield own, partial(make, own)

    def read(self, block: Block) -> Tensor:
        """Return the values of a single field in a block."""
        (rule,) = self.rules
        around = grow(block, rule.halo)
        values = {name: torch.from_numpy(self.reader.read(name, around)) for name in rule.reads}
        return rule.make(values, self.cell).view(rule.components, *block.shape)
