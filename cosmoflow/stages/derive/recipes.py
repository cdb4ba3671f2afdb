"""What can be derived from stored fields: from which, and how, in a block or in the whole box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.errors import ConfigError
from cosmoflow.numerics import calculus, deformation, fourier
from cosmoflow.numerics.blocks import Block, grow
from cosmoflow.numerics.painting import divide_momentum
from cosmoflow.numerics.smoothing import gaussian_weights, smooth_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.variables import count_parts, leading_dimension
from cosmoflow.units import FIELD_UNITS, SMOOTHED

Floats = NDArray[np.float32]


class Source(Protocol):
    """Some cells of a store: its variables, smoothed or not, and how its velocity changes there."""

    background: tuple[float, float, float]
    """Mean momentum over mean density, km/s: the velocity where there is no mass."""

    def variable(self, name: str) -> Floats:
        """Return a variable, shape ``(nx, ny, nz)`` or ``(3, nx, ny, nz)``."""

    def divergence(self) -> Floats:
        """Return the divergence of the velocity, shape ``(nx, ny, nz)``, km/s/(Mpc/h)."""

    def curl(self) -> Floats:
        """Return the curl of the velocity, shape ``(3, nx, ny, nz)``, km/s/(Mpc/h)."""

    def strain(self) -> Floats:
        """Return the symmetric velocity gradient, shape ``(6, nx, ny, nz)``, km/s/(Mpc/h)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one field is made.

    Parameters
    ----------
    inputs : tuple of str
        Stored variables that it needs.
    make : callable
        From a source to the field over its cells.
    slopes : bool
        It takes derivatives, which need the cells around.
    smoothed : bool
        The inputs are Gaussian-smoothed first.
    """

    inputs: tuple[str, ...]
    make: Callable[[Source], Floats]
    slopes: bool = False
    smoothed: bool = False


def _velocity(source: Source) -> Floats:
    background = np.array(source.background, np.float32)
    return divide_momentum(source.variable("momentum"), source.variable("density"), background)


def _momentum(source: Source) -> Floats:
    return source.variable("density") * source.variable("velocity")


def _velocity_shear(source: Source) -> Floats:
    return deformation.symmetric_eigenvalues(source.strain())


_RATIOS: dict[str, tuple[tuple[str, ...], Callable[[Source], Floats]]] = {
    "velocity": (("momentum", "density"), _velocity),
    "momentum": (("velocity", "density"), _momentum),
}

_SLOPES: dict[str, Callable[[Source], Floats]] = {
    "divergence": lambda source: source.divergence(),
    "vorticity": lambda source: source.curl(),
    "velocity_shear": _velocity_shear,
}


def recipe_of(name: str) -> Recipe:
    """Return how a field is made.

    ``smoothed_X`` is X of the smoothed velocity where X is a derivative, else the stored variable X
    smoothed: a ``smoothed_velocity`` is weighted by volume, not by mass.

    Raises
    ------
    ConfigError
        There is no such field.
    """
    base = name.removeprefix(SMOOTHED)
    smoothed = base != name
    if base in _SLOPES:
        return Recipe(("velocity",), _SLOPES[base], slopes=True, smoothed=smoothed)
    if smoothed and name in FIELD_UNITS:
        return Recipe((base,), lambda source: source.variable(base), smoothed=True)
    if name in _RATIOS:
        return Recipe(*_RATIOS[name])
    plain = [*_RATIOS, *_SLOPES]
    others = [field for field in FIELD_UNITS if field.startswith(SMOOTHED)]
    raise ConfigError(
        "no such field can be derived",
        where="--field",
        value=name,
        limit=", ".join([*plain, *others]),
    )


class Box(Protocol):
    """A box, or a part of it, to derive fields from; a fields store is one."""

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""

    def read_block(self, name: str, block: Block, *, lead: tuple[int, ...] = ()) -> Floats:
        """Return some cells of a variable."""


class BlockSource:
    """A block of a store, with derivatives by differences and smoothing in real space.

    To the last bit the same cells of any other block that holds them, or of the whole box.

    Parameters
    ----------
    store : Box
        The box.
    block : Block
        The cells that are wanted, inside the grid.
    background : (3,) float
        Mean momentum over mean density, km/s.
    radius : float, optional
        Of the Gaussian that everything is smoothed with, Mpc/h.
    halo : int
        1 for derivatives, else 0.
    """

    def __init__(
        self,
        store: Box,
        block: Block,
        background: tuple[float, float, float],
        *,
        radius: float | None = None,
        halo: int = 0,
    ) -> None:
        self.background = background
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
        if leading_dimension(name) is None:
            return smooth_block(self._store.read_block(name, region), weights)
        values = np.empty((count_parts(name), *self._haloed.shape), np.float32)
        for index, part in enumerate(values):
            # One after the other: the halo of a wide Gaussian is large.
            part[:] = smooth_block(self._store.read_block(name, region, lead=(index,)), weights)
        return values

    def _velocity(self) -> Tensor:
        return torch.from_numpy(self._read("velocity"))

    def variable(self, name: str) -> Floats:
        """Return a variable over the block."""
        values = self._read(name)
        x, y, z = (slice(self._halo, cells - self._halo) for cells in self._haloed.shape)
        return values[..., x, y, z]

    def divergence(self) -> Floats:
        """Return the divergence of the velocity."""
        return calculus.inner_divergence(self._velocity(), self._store.cell_size).numpy()

    def curl(self) -> Floats:
        """Return the curl of the velocity."""
        return calculus.inner_curl(self._velocity(), self._store.cell_size).numpy()

    def strain(self) -> Floats:
        """Return the symmetric velocity gradient."""
        return deformation.inner_strain(self._velocity(), self._store.cell_size).numpy()


class BoxSource:
    """A whole store, with derivatives and smoothing of its Fourier modes, in memory.

    Parameters
    ----------
    store : FieldStore
        The box.
    background : (3,) float
        Mean momentum over mean density, km/s.
    radius : float
        Of the Gaussian that everything is smoothed with, Mpc/h; 0 for none.
    """

    def __init__(
        self, store: FieldStore, background: tuple[float, float, float], *, radius: float = 0.0
    ) -> None:
        self.background = background
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

    def _fields(self, modes: Sequence[Tensor]) -> Floats:
        """Transform component after component, which needs the workspace of one."""
        cells = self._store.grid
        out = np.empty((len(modes), cells, cells, cells), np.float32)
        for values, part in zip(out, modes, strict=True):
            values[:] = fourier.inverse(part, cells).numpy()
        return out

    def variable(self, name: str) -> Floats:
        """Return a variable of the box."""
        values = self._store.read(name)
        if self._radius:
            parts = values if leading_dimension(name) is not None else values[None]
            for part in parts:
                part[:] = fourier.inverse(self._modes(part), self._store.grid).numpy()
        return values

    def divergence(self) -> Floats:
        """Return the divergence of the velocity."""
        modes = calculus.divergence_modes(self._velocity_modes, self._size)
        return fourier.inverse(modes, self._store.grid).numpy()

    def curl(self) -> Floats:
        """Return the curl of the velocity."""
        return self._fields(calculus.curl_modes(self._velocity_modes, self._size).unbind())

    def strain(self) -> Floats:
        """Return the symmetric velocity gradient."""
        return deformation.spectral_strain(self._velocity_modes, self._size).numpy()


def derive_block(
    store: Box,
    block: Block,
    names: Sequence[str],
    radius: float | None,
    background: tuple[float, float, float],
) -> dict[str, Floats]:
    """Derive fields over a block, by differences.

    Parameters
    ----------
    store : Box
        The box.
    block : Block
        Cells, inside the grid.
    names : sequence of str
        What :func:`recipe_of` knows.
    radius : float or None
        Of the Gaussian of smoothed fields, Mpc/h.
    background : (3,) float
        Mean momentum over mean density, km/s.

    Returns
    -------
    dict of str to array
        Shape ``(*block.shape)`` or ``(3, *block.shape)``, float32.
    """
    fields: dict[str, Floats] = {}
    for smoothed in (False, True):
        recipes = {name: recipe_of(name) for name in names}
        recipes = {name: one for name, one in recipes.items() if one.smoothed == smoothed}
        source = BlockSource(
            store,
            block,
            background,
            radius=radius if smoothed else None,
            halo=int(any(one.slopes for one in recipes.values())),
        )
        fields |= {name: one.make(source) for name, one in recipes.items()}
    return fields


def derive_box(
    store: FieldStore,
    names: Sequence[str],
    radius: float | None,
    background: tuple[float, float, float],
) -> dict[str, Floats]:
    """Derive fields of the whole box, with Fourier transforms; see :func:`derive_block`."""
    fields: dict[str, Floats] = {}
    for smoothed in (False, True):
        source = BoxSource(store, background, radius=(radius or 0.0) if smoothed else 0.0)
        for name in names:
            recipe = recipe_of(name)
            if recipe.smoothed == smoothed:
                fields[name] = recipe.make(source)
    return fields
