"""Readers of fields stores for tasks, block by block, and checks that two stores match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block, read_once
from cosmoflow.numerics.calibration import Intervals
from cosmoflow.numerics.field_table import ERROR, FIELDS
from cosmoflow.numerics.painting import divide_momentum
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.reopening import reopen_fields

Vector = tuple[float, float, float]

VELOCITY_ERROR: Final = f"velocity{ERROR}"
"""Variable of the expected error of a velocity."""

_TOLERANCE: Final = 1e-6
"""Largest relative difference of equal numbers, due to rounding by float32 and text."""

READING: Final = 2.25
"""Memory while a block is read over that of the result: decoded pieces, and the mask of finite
values."""
_DIVIDING: Final = 3 + 1 + 1 + 0.25 + 3
"""Numbers per cell while a momentum is divided: the momentum, the density, a copy of the density
without zeros, the mask of zeros, and the velocity."""


@dataclass(frozen=True, slots=True)
class Method:
    """Location of a stored velocity.

    Parameters
    ----------
    name : str
        Name in the report.
    url : str
        URL of the fields store.
    variable : str
        A velocity, or ``momentum``.
    lead : tuple of int
        Indices into the dimensions of the variable before the component.
    background : (float, float, float)
        Mean momentum of the box, km/s: for a ``momentum``, the velocity where there is no mass.
    intervals : (float, float), optional
        Intervals of the expected errors, if they are compared with the residual.
    radius : float, optional
        For linear theory of the density beside it: the smoothing radius, Mpc/h. Its modes are made
        from those of the density.
    """

    name: str
    url: str
    variable: str = "velocity"
    lead: tuple[int, ...] = ()
    background: Vector = (0.0, 0.0, 0.0)
    intervals: Intervals | None = None
    radius: float | None = None


@dataclass(frozen=True)
class StoreReader:
    """Reader of a density and a velocity, from one store or two: a picklable ``FieldReader``.

    Parameters
    ----------
    truth : str
        URL of the fields store that has the density.
    method : Method
        Location of the velocity.
    grid : int
        Cells per axis.
    box_size : float
        Box size, Mpc/h.
    shard : int
        Cells per axis of a shard of the truth.
    particles_per_cell : float, optional
        Number of particles in a cell of mean density.
    """

    truth: str
    method: Method
    grid: int
    box_size: float
    shard: int
    particles_per_cell: float | None = None

    @classmethod
    def of(cls, store: FieldStore, name: str = "") -> Self:
        """Return a reader of the density and velocity of one store."""
        shard = min(store.shard, store.grid)
        method = Method(name or store.url, store.url)
        return cls(store.url, method, store.grid, store.metadata.box_size, shard)

    @property
    def intervals(self) -> Intervals | None:
        """Intervals of the expected errors; None if there are none to compare."""
        return self.method.intervals

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open stores, which every process reopens."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    @cached_property
    def _density(self) -> FieldStore:
        return reopen_fields(self.truth, "density", self.method.variable)

    @cached_property
    def _store(self) -> FieldStore:
        url = self.method.url
        if url == self.truth:
            return self._density
        names = [self.method.variable, *[VELOCITY_ERROR] * (self.intervals is not None)]
        return reopen_fields(url, *names)

    def held(self, names: Sequence[str]) -> int:
        """Return the most float32 numbers per cell that are held while fields are read.

        Parameters
        ----------
        names : sequence of str
            ``density`` and ``velocity``, or one of them, in the order in which they are read and
            then kept.
        """
        kept, most = 0, 0.0
        for name in names:
            reading = READING * FIELDS[name].parts
            if name == "velocity" and self.method.variable == "momentum":
                reading = max(reading, _DIVIDING)
            most = max(most, kept + reading)
            kept += FIELDS[name].parts
        return math.ceil(most)

    def variables(self, name: str) -> list[tuple[str, str, int]]:
        """Return URL, name and components of each stored variable that is read for a field."""
        if name == "density":
            return [(self.truth, name, 1)]
        if name == VELOCITY_ERROR:
            return [(self.method.url, name, FIELDS[name].parts)]
        found = [(self.method.url, self.method.variable, FIELDS[name].parts)]
        return found + self.variables("density") * (self.method.variable == "momentum")

    def read(self, name: str, block: Block) -> NDArray[np.float32]:
        """Return a field over a block.

        ``density`` has the shape (nx, ny, nz), ``velocity`` and its expected error
        ``velocity_std`` (3, nx, ny, nz), km/s.

        Raises
        ------
        DataError
            The field is damaged or has values that are not finite, or an expected error is
            negative.
        """
        if name == "density":
            return read_once(partial(self._density.read_block, name), block, self.grid)
        method = self.method
        if name == VELOCITY_ERROR:
            error = self._store.read_block(name, block)
            if (least := float(error.min())) < 0.0:
                raise DataError(
                    "a standard deviation is negative",
                    where=f"{method.url}, {name}, block of {block.shape} cells from {block.origin}",
                    value=f"{least:g} km/s",
                    limit="0 or more",
                )
            return error
        read = partial(self._store.read_block, method.variable, lead=method.lead)
        found = read_once(read, block, self.grid)
        if method.variable != "momentum":
            return found
        background = np.array(method.background, np.float32)
        velocity: NDArray[np.float32] = divide_momentum(
            found, self.read("density", block), background
        )
        return velocity


def check_same_box(first: FieldStore, second: FieldStore) -> None:
    """Refuse two stores that are not of one box on one grid at one redshift.

    Raises
    ------
    DataError
        The stores differ in their grid, or in box size, redshift or cosmology by more than
        rounding.
    """
    mine, theirs = first.metadata, second.metadata
    pairs: dict[str, tuple[Any, Any]] = {
        "grid": (second.grid, first.grid),
        "box_size": (theirs.box_size, mine.box_size),
        "redshift": (theirs.redshift, mine.redshift),
    }
    # By field, as stored metadata omit parameters that flat Lambda-CDM does not have.
    pairs |= {
        name: (getattr(theirs.cosmology, name), getattr(mine.cosmology, name))
        for name in CosmologyConfig.model_fields
    }
    for name, (value, wanted) in pairs.items():
        # Redshifts are computed from scale factors, so it is 1 + z that is rounded.
        start = 1.0 if name == "redshift" else 0.0
        if not _same(value, wanted, start):
            raise DataError(
                f"the two stores differ in {name}",
                where=second.url,
                value=value,
                limit=f"{wanted} as in {first.url}",
                remedy="name stores of one box, on one grid, at one redshift"
                if name in ("grid", "box_size", "redshift")
                else "name stores of one cosmology; if one of them states another than its box "
                f"has, make it again with --set cosmology.{name}=... (`import`, `simulate`), or "
                f"--set snapshot.{name}=... (`paint`, `convert` of a snapshot)",
            )


def _same(one: Any, other: Any, start: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(start + one, start + other, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return bool(one == other)
