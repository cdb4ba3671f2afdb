"""Validated requests to import cubes, and the scaling of the density cube."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from cosmoflow.errors import DataError
from cosmoflow.numerics.field_table import STORED
from cosmoflow.stages.inputs.density import MEAN_TOLERANCE, Summary, require_density
from cosmoflow.storage.cube_files import WITHIN
from cosmoflow.storage.cubes import IN_MEMORY, Cube, Order, digest_of, open_cube
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.layout import check_unit
from cosmoflow.storage.metadata import check_box
from cosmoflow.storage.urls import absolute

Quantity = Literal["density", "delta", "counts"]
"""1 + delta, delta, or anything proportional to mass."""

VECTORS: Final = ("velocity", "momentum")

_DOES: Final = {
    "density": "takes the values as they are",
    "delta": "adds 1",
    "counts": "divides by the mean",
}
"""What ``--quantity`` does with the values."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to import cubes.

    Parameters
    ----------
    cubes : dict of Cube
        Cubes by the name of their variable in the store.
    digests : dict of str
        Digests of the content of the cubes; empty before :meth:`hashed`.
    sources : dict of str
        Locations of the cubes.
    box_size, redshift : float
        Side of the box, Mpc/h, and its redshift.
    quantity : str or None
        Quantity in the density cube; None to infer it.
    order : str or None
        Order of the axes; None for the order that a file states.
    """

    cubes: Mapping[str, Cube]
    digests: Mapping[str, str]
    sources: Mapping[str, str]
    box_size: float
    redshift: float
    quantity: Quantity | None
    order: Order | None

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return self.cubes["density"].grid

    @property
    def in_memory(self) -> bool:
        """Whether a cube is in the memory of this process, like arrays and those of npz files."""
        return any(cube.stored.in_memory for cube in self.cubes.values())

    def hashed(self) -> Request:
        """Read the cubes and return the request with the digests of all of them."""
        missing = {name: place for name, place in self.sources.items() if name not in self.digests}
        found = {name: digest_of(place) for name, place in missing.items()}
        return replace(self, digests={**self.digests, **found})

    def check_unchanged(self) -> None:
        """Refuse files that changed since they were opened.

        Raises
        ------
        DataError
        """
        for name, place in self.sources.items():
            if place != IN_MEMORY and (now := digest_of(place)) != self.digests[name]:
                raise changed_input(place, self.digests[name], now)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Conversion of the density cube to 1 + delta: ``offset + value / unit``.

    ``particles_per_cell`` is their mean number if the cube holds numbers of particles, else None.
    """

    offset: float
    unit: float
    particles_per_cell: float | None = None


def open_request(
    files: Mapping[str, str | None],
    *,
    box_size: float,
    redshift: float,
    quantity: Quantity | None,
    order: Order | None,
) -> Request:
    """Open the cubes, and refuse those that cannot be imported.

    Raises
    ------
    DataError, ConfigError, StorageError
    """
    places = {name: _absolute(place) for name, place in files.items() if place is not None}
    cubes = {
        name: open_cube(place, order, vector=name in VECTORS) for name, place in places.items()
    }
    request = Request(cubes, {}, places, box_size, redshift, quantity, order)
    check_request(request)
    return request


def _absolute(place: str) -> str:
    url, within, name = place.partition(WITHIN)
    return f"{absolute(url)}{within}{name}"


def check_request(request: Request) -> None:
    """Refuse an invalid box, and cubes that do not match the box or one another.

    Raises
    ------
    ConfigError, DataError
    """
    check_box(request.box_size, request.redshift, None)
    for name, cube in request.cubes.items():
        cube.check_box(request.box_size)
        if name in VECTORS:
            check_unit(cube.stored.unit, STORED[name].unit, cube.where)
        if cube.grid != request.grid:
            raise DataError(
                f"the {name} is on another grid than the density",
                where=cube.where,
                value=f"{cube.grid} cells per axis",
                limit=request.grid,
            )


def settle(request: Request, found: Summary) -> tuple[Scaling, list[str]]:
    """Infer the quantity in the density cube if it is not given, and return how to scale it.

    Raises
    ------
    DataError
        The values contradict the stated quantity, or fit none.
    """
    where, said = request.cubes["density"].where, request.quantity
    if found.bad:
        require_density(found, where)
    if found.lowest == found.highest:
        raise DataError(
            "the cube is constant", where=where, value=found.lowest, limit="values that vary"
        )
    quantity = said or _recognise(found)
    heard = "was said to be" if said else "was recognised as"
    if quantity in (None, "density"):
        _require_density(found, where)
        return Scaling(0.0, 1.0), [f"The cube {heard} 1 + delta: its mean is {found.mean:.6g}."]
    if quantity == "delta":
        if not found.is_delta:
            raise DataError(
                "the cube is not delta",
                where=where,
                value=f"a mean of {found.mean:g} and a lowest value of {found.lowest:g}",
                limit=f"a mean of 0 to within {MEAN_TOLERANCE:g}, no value below -1",
                remedy=_advise(found) or "give the density contrast, or another cube",
            )
        return Scaling(1.0, 1.0), [f"The cube {heard} delta: 1 was added."]
    if found.lowest < 0.0:
        raise DataError(
            "counts and masses are never below 0",
            where=where,
            value=f"a lowest value of {found.lowest:g}",
            limit=0,
            remedy=_advise(found) or "give another cube",
        )
    notes = [f"The cube {heard} counts: it was divided by its mean, {found.mean:.9g}."]
    if not found.counts_particles:
        return Scaling(0.0, found.mean), notes
    notes.append(
        "All values are integers: they are taken to be numbers of particles in their nearest "
        "cells (NGP), and the mean was kept as the number of particles per cell."
    )
    return Scaling(0.0, found.mean, found.mean), notes


def _require_density(found: Summary, where: str) -> None:
    """Refuse values that are not 1 + delta; the remedy names the quantity that they can be."""
    try:
        require_density(found, where)
    except DataError as error:
        error.remedy = _advise(found) or error.remedy
        raise


def _advise(found: Summary) -> str | None:
    """Return the remedy for values of another quantity; None if they fit none."""
    counted = "counts" if found.lowest >= 0.0 and found.mean > 0.0 else None
    quantity = _recognise(found) or counted
    return None if quantity is None else f"--quantity {quantity}, which {_DOES[quantity]}"


def _recognise(found: Summary) -> Quantity | None:
    # First: as many particles as cells have a mean of 1 too, and their number is worth keeping.
    if found.whole and found.lowest >= 0.0:
        return "counts"
    if found.is_density:
        return "density"
    return "delta" if found.is_delta else None


def assumed_of(request: Request) -> list[str]:
    """Return one sentence per assumption about the cubes."""
    notes = []
    for name, cube in request.cubes.items():
        if (others := cube.stored.others) is not None:
            left = f"; the file also holds {', '.join(others)}" if others else ""
            notes.append(f"The {name} is the array {cube.where}{left}.")
    if not request.cubes["density"].named and request.order is None:
        notes.append("The axes of the cube were taken to be x, y, z, as NumPy reads them.")
    return notes
