"""Fields stores as tasks read them, block by block, and whether two of them belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.painting import divide_momentum
from cosmoflow.numerics.spectra import WINDOWS
from cosmoflow.storage.fields import FieldStore

Vector = tuple[float, float, float]

_TOLERANCE: Final = 1e-6
"""Relative difference of two numbers that mean the same: what float32 and text leave of them."""

_READING: Final = 2.25
"""Memory of a store while it reads a block, over the result: pieces as they are decoded, and
which values are finite."""
_DIVIDING: Final = 3 + 1 + 1 + 0.25 + 3
"""Numbers a cell while a momentum is divided: the momentum, the density, a copy of it without
zeros, where those were, and the velocity."""


@dataclass(frozen=True, slots=True)
class Method:
    """Where a velocity is stored.

    Parameters
    ----------
    name : str
        Name in the report.
    url : str
        URL of the fields store.
    variable : str
        A velocity, or ``momentum``.
    lead : tuple of int
        Indices into the variable's dimensions before the component.
    background : (float, float, float)
        Mean momentum of the box, which is the velocity of cells without mass, km/s.
    """

    name: str
    url: str
    variable: str = "velocity"
    lead: tuple[int, ...] = ()
    background: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StoreReader:
    """Reads a density and a velocity, which may be in two stores: a picklable ``FieldReader``.

    Parameters
    ----------
    truth : str
        URL of the fields store with the density.
    method : Method
        Whose velocity.
    grid : int
        Cells per axis.
    box_size : float
        Mpc/h.
    shard : int
        Cells per axis of what one write of the truth covers.
    """

    truth: str
    method: Method
    grid: int
    box_size: float
    shard: int

    @classmethod
    def of(cls, store: FieldStore, name: str = "") -> Self:
        """Return the reader of a store's own density and velocity."""
        shard = min(store.shard, store.grid)
        method = Method(name or store.url, store.url)
        return cls(store.url, method, store.grid, store.metadata.box_size, shard)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the stores, which every process opens for itself."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    @cached_property
    def _density(self) -> FieldStore:
        return FieldStore(self.truth)

    @cached_property
    def _store(self) -> FieldStore:
        return self._density if self.method.url == self.truth else FieldStore(self.method.url)

    def held(self, names: Sequence[str]) -> int:
        """Return how many float32 numbers a cell takes at most while fields are read.

        Parameters
        ----------
        names : sequence of str
            Of ``density`` and ``velocity``, in the order in which they are read and then kept.
        """
        kept, most = 0, 0.0
        for name in names:
            reading = _READING * FIELDS[name].parts
            if name == "velocity" and self.method.variable == "momentum":
                reading = max(reading, _DIVIDING)
            most = max(most, kept + reading)
            kept += FIELDS[name].parts
        return math.ceil(most)

    def read(self, name: str, block: Block) -> NDArray[np.float32]:
        """Return ``density``, shape (nx, ny, nz), or ``velocity``, shape (3, nx, ny, nz), km/s.

        Raises
        ------
        DataError
            The field is damaged or holds values that are not finite.
        """
        if name == "density":
            return self._density.read_block("density", block)
        method = self.method
        found = self._store.read_block(method.variable, block, lead=method.lead)
        if method.variable != "momentum":
            return found
        background = np.array(method.background, np.float32)
        velocity: NDArray[np.float32] = divide_momentum(
            found, self.read("density", block), background
        )
        return velocity


def painted_scheme(store: FieldStore) -> str | None:
    """Return the mass-assignment scheme that a store was painted with, if it says.

    Raises
    ------
    DataError
        It is none that cosmoflow knows.
    """
    config = store.metadata.provenance.get("config", {})
    scheme = config.get("paint", {}).get("scheme") if isinstance(config, dict) else None
    if scheme is not None and scheme not in WINDOWS:
        raise DataError(
            "unknown mass-assignment scheme",
            where=store.url,
            value=scheme,
            limit=", ".join(WINDOWS),
        )
    return scheme


def check_same_box(first: FieldStore, second: FieldStore) -> None:
    """Refuse two stores that are not of one box on one grid at one time.

    Raises
    ------
    DataError
        They differ in their grid, or in box size, redshift or cosmology by more than rounding.
    """
    mine, theirs = first.metadata, second.metadata
    pairs: dict[str, tuple[Any, Any]] = {
        "grid": (second.grid, first.grid),
        "box_size": (theirs.box_size, mine.box_size),
        "redshift": (theirs.redshift, mine.redshift),
    }
    # By their fields: what is written leaves out parameters that flat Lambda-CDM does not have.
    pairs |= {
        name: (getattr(theirs.cosmology, name), getattr(mine.cosmology, name))
        for name in CosmologyConfig.model_fields
    }
    for name, (value, wanted) in pairs.items():
        if not _same(value, wanted):
            raise DataError(
                f"the two stores differ in {name}",
                where=second.url,
                value=value,
                limit=f"{wanted} as in {first.url}",
                remedy="name stores of one box, on one grid, at one redshift",
            )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return bool(one == other)
