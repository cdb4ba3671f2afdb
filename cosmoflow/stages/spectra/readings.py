"""Fields of several boxes that are read and transformed together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.numerics.wiener import LinearTheory
from cosmoflow.stages.inputs.readers import StoreReader
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Derived

_TOGETHER = 5
"""Most numbers per cell of each box that are transformed together, to limit the parts on disk."""


@dataclass(frozen=True, slots=True)
class LinearModes:
    """Modes of a velocity of linear theory, made from those of the density contrast.

    Parameters
    ----------
    contrast : int
        Number of the contrast's transform.
    radius : float
        Smoothing radius, Mpc/h.
    rate : float
        ``f a H``, km/s per Mpc/h.
    """

    contrast: int
    radius: float
    rate: float

    def make(self, contrast: Tensor, waves: WaveBlock) -> Tensor:
        """Return the modes ``(3, q, n, n)`` in a block, from those of the contrast."""
        return LinearTheory(self.radius).flow_modes(contrast[0], waves, self.rate)


@dataclass(frozen=True)
class Reading:
    """Some fields of each of several boxes.

    Parameters
    ----------
    sources : tuple of Derived
        The fields to transform.
    linear : tuple of LinearModes
        Velocities that need no transform of their own. They are numbered after all transforms.
    places : dict
        The number of each field: of its transform, or of the velocity that needs none, by number of
        the box and name.
    """

    sources: tuple[Derived, ...]
    linear: tuple[LinearModes, ...]
    places: dict[tuple[int, str], int]


def share_readings(quantities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the fields to transform for some quantities, in tuples that share a reading.

    All fields need the velocity and most of them the density, so that fewer tuples mean less to
    read. A tuple has at most :data:`_TOGETHER` numbers per cell.
    """
    groups: list[list[str]] = []
    for name in dict.fromkeys(QUANTITIES[name].field for name in quantities):
        numbers = QUANTITIES[name].components
        for group in groups:
            if numbers + sum(QUANTITIES[one].components for one in group) <= _TOGETHER:
                group.append(name)
                break
        else:
            groups.append([name])
    return [tuple(group) for group in groups]


def read_together(
    readers: Iterable[StoreReader], fields: tuple[str, ...], grid: Grid, rate: float = 1.0
) -> Reading:
    """Return the sources of some fields of each box.

    Velocities of linear theory are not transformed: they share the transform of the first box's
    density.

    Parameters
    ----------
    readers : iterable of StoreReader
        The boxes; all have the first one's density.
    fields : tuple of str
        Names in :data:`cosmoflow.numerics.quantities.QUANTITIES`.
    grid : Grid
        The box.
    rate : float
        ``f a H``, km/s per Mpc/h, of linear theory.
    """
    boxes = list(readers)
    linear = [
        number
        for number, reader in enumerate(boxes)
        if reader.method.radius is not None and "velocity" in fields
    ]
    sources: list[Derived] = []
    places: dict[tuple[int, str], int] = {}
    for number, reader in enumerate(boxes):
        own = tuple(name for name in fields if name != "velocity" or number not in linear)
        if linear and number == 0:
            own += ("contrast",)
        places |= {(number, name): len(places) + place for place, name in enumerate(own)}
        sources += [Derived(reader, grid.cell_size, own)] * bool(own)
    transforms = len(places)
    for place, number in enumerate(linear):
        places[number, "velocity"] = transforms + place
    made = tuple(
        LinearModes(places[0, "contrast"], boxes[number].method.radius or 0.0, rate)
        for number in linear
    )
    return Reading(tuple(sources), made, places)
