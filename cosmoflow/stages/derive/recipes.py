"""Recipes of derived fields: their inputs, and their computation in a block or the whole box."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.errors import ConfigError, suggest
from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.numerics.field_table import FIELDS, STORED, FieldRow
from cosmoflow.numerics.painting import divide_momentum
from cosmoflow.numerics.quantities import QUANTITIES, Quantity
from cosmoflow.numerics.smoothing import gaussian_weights, smooth_block
from cosmoflow.stages.inputs.particle_counts import COUNT
from cosmoflow.storage.fields import FieldStore

Floats = NDArray[np.float32]
Vector = tuple[float, float, float]

PLAIN: Final = ("velocity", "momentum", "divergence", "vorticity", "velocity_shear", "count")
"""Fields that can be derived without smoothing."""


def recipe_of(name: str) -> FieldRow:
    """Return the description of a derived field, including its stored inputs.

    ``smoothed_X`` is X of the smoothed velocity if X is a derivative, else the stored variable X
    smoothed: a ``smoothed_velocity`` is weighted by volume, not by mass.

    Raises
    ------
    ConfigError
        The field is unknown.
    """
    smoothed = [row.name for row in STORED.values() if row.smoothed]
    if name not in (*PLAIN, *smoothed):
        raise ConfigError(
            "no such field can be derived",
            where="--field",
            value=name,
            limit=", ".join([*PLAIN, *smoothed]),
            remedy=suggest(name, [*PLAIN, *smoothed]),
        )
    # The table describes the velocity as an input; only here is it derived.
    row = FIELDS[name]
    return replace(row, inputs=("momentum", "density")) if name == "velocity" else row


class Box(Protocol):
    """A box, or a part of a box, to derive fields from, such as a fields store."""

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""

    def read_block(self, name: str, block: Block, *, lead: tuple[int, ...] = ()) -> Floats:
        """Return a variable over a block."""


class BlockSource:
    """A block of a store, with derivatives by differences and smoothing in real space.

    The values of a cell are bitwise the same in any block that contains it, or in the whole box.

    Parameters
    ----------
    store : Box
        The box.
    block : Block
        Cells to derive, inside the grid.
    radius : float, optional
        Radius of the Gaussian that smooths all fields, Mpc/h.
    halo : int
        1 for derivatives, else 0.
    """

    def __init__(
        self,
        store: Box,
        block: Block,
        *,
        radius: float | None = None,
        halo: int = 0,
    ) -> None:
        self._store = store
        self._halo = halo
        self._haloed = grow(block, halo)
        self._weights = None if radius is None else gaussian_weights(radius, store.cell_size)
        self._held: dict[str, Floats] = {}

    def _read(self, name: str) -> Floats:
        """Read a variable with the halo of the derivatives, once."""
        if name not in self._held:
            if self._weights is None:
                self._held[name] = self._store.read_block(name, self._haloed)
            else:
                self._held[name] = self._read_smoothed(name, self._weights)
        return self._held[name]

    def _read_smoothed(self, name: str, weights: NDArray[np.float64]) -> Floats:
        region = grow(self._haloed, len(weights) // 2)
        if FIELDS[name].lead is None:
            return smooth_block(self._store.read_block(name, region), weights)
        values = np.empty((FIELDS[name].parts, *self._haloed.shape), np.float32)
        for index, part in enumerate(values):
            # One by one, as the halo of a wide Gaussian is large.
            part[:] = smooth_block(self._store.read_block(name, region, lead=(index,)), weights)
        return values

    def variable(self, name: str) -> Floats:
        """Return a variable over the block."""
        values = self._read(name)
        x, y, z = (slice(self._halo, cells - self._halo) for cells in self._haloed.shape)
        return values[..., x, y, z]

    def slopes(self, rule: Quantity) -> Floats:
        """Return derivatives of the velocity over the block."""
        velocity = torch.from_numpy(self._read("velocity"))
        return rule.make({"velocity": velocity}, self._store.cell_size).numpy()


class BoxSource:
    """A whole store, with derivatives and smoothing of its Fourier modes, in memory.

    Parameters
    ----------
    store : FieldStore
        The box.
    radius : float
        Radius of the Gaussian that smooths all fields, Mpc/h; 0 for none.
    """

    def __init__(self, store: FieldStore, *, radius: float = 0.0) -> None:
        self._store = store
        self._size = store.metadata.box_size
        self._radius = radius

    def _modes(self, values: Floats) -> Tensor:
        modes = fourier.forward(torch.from_numpy(values))
        return fourier.smooth_gaussian(modes, self._size, self._radius)

    @cached_property
    def _velocity_modes(self) -> Tensor:
        cells = self._store.grid
        modes = fourier.empty((3, cells, cells, cells // 2 + 1), complex_modes=True)
        for index, part in enumerate(modes):
            part.copy_(self._modes(self._store.read("velocity", lead=(index,))))
        return modes

    def variable(self, name: str) -> Floats:
        """Return a variable of the box."""
        values = self._store.read(name)
        if self._radius:
            for part in values if FIELDS[name].lead is not None else values[None]:
                part[:] = fourier.inverse(self._modes(part), self._store.grid).numpy()
        return values

    def slopes(self, rule: Quantity) -> Floats:
        """Return derivatives of the velocity of the box."""
        cells = self._store.grid
        waves = calculus.odd_wavenumbers(self._velocity_modes, self._size)
        products = torch.empty((rule.products, cells, cells, cells))
        # One by one, so that only one workspace is needed.
        for product, modes in zip(
            products, rule.multiply(self._velocity_modes, waves), strict=True
        ):
            product.copy_(fourier.inverse(modes, cells))
        found: Floats = rule.finish(products).numpy()
        return found[0] if rule.components == 1 else found


def _make(
    row: FieldRow,
    source: BlockSource | BoxSource,
    background: Vector,
    particles_per_cell: float | None,
) -> Floats:
    """Return a field over the cells of a source."""
    if row.slopes:
        return source.slopes(QUANTITIES[row.base or row.name])
    first, *others = (source.variable(name) for name in row.inputs)
    if row.smoothed:
        return first
    if row.name == "velocity":
        return divide_momentum(first, others[0], np.array(background, np.float32))
    if row.name == COUNT:
        assert particles_per_cell is not None
        return first * np.float32(particles_per_cell)
    return first * others[0]


def derive_block(
    store: Box,
    block: Block,
    names: Sequence[str],
    radius: float | None,
    background: Vector,
    particles_per_cell: float | None,
) -> dict[str, Floats]:
    """Derive fields over a block, by differences.

    Parameters
    ----------
    store : Box
        The box.
    block : Block
        Cells to derive, inside the grid.
    names : sequence of str
        Fields that :func:`recipe_of` knows.
    radius : float or None
        Radius of the Gaussian for smoothed fields, Mpc/h.
    background : (3,) float
        Mean momentum over mean density, km/s.
    particles_per_cell : float or None
        Mean number of particles in a cell, for the field ``count``.

    Returns
    -------
    dict of str to array
        Fields, shape ``(*block.shape)`` or ``(3, *block.shape)``, float32.
    """
    fields: dict[str, Floats] = {}
    for rows in _by_smoothing(names):
        source = BlockSource(
            store,
            block,
            radius=radius if rows[0].smoothed else None,
            halo=max(row.halo for row in rows),
        )
        fields |= {row.name: _make(row, source, background, particles_per_cell) for row in rows}
    return fields


def derive_box(
    store: FieldStore,
    names: Sequence[str],
    radius: float | None,
    background: Vector,
    particles_per_cell: float | None,
) -> dict[str, Floats]:
    """Derive fields of the whole box, with Fourier transforms; see :func:`derive_block`."""
    fields: dict[str, Floats] = {}
    for rows in _by_smoothing(names):
        source = BoxSource(store, radius=(radius or 0.0) if rows[0].smoothed else 0.0)
        fields |= {row.name: _make(row, source, background, particles_per_cell) for row in rows}
    return fields


def _by_smoothing(names: Iterable[str]) -> list[list[FieldRow]]:
    """Group the fields into plain and smoothed ones, which share no inputs."""
    rows = [recipe_of(name) for name in names]
    groups = [[row for row in rows if row.smoothed == smoothed] for smoothed in (False, True)]
    return [group for group in groups if group]
