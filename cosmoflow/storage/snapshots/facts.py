"""What the files of the Gadget family say before any particle is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from cosmoflow.storage.snapshots.files import SourceFile

POSITION: Final = "Coordinates"
VELOCITY: Final = "Velocities"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a virtual dataset that one source holds.

    Parameters
    ----------
    url : str
        Of the source's file.
    dataset : str
        Name of the source in it.
    first, rows : int
        Rows of the virtual dataset.
    start, step : int
        First row in the source, and from one to the next.
    """

    url: str
    dataset: str
    first: int
    rows: int
    start: int = 0
    step: int = 1

    @property
    def needed(self) -> int:
        """Rows that the source must have."""
        return self.start + (self.rows - 1) * self.step + 1


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """What one file holds of one particle type.

    Parameters
    ----------
    rows : int
        Particles.
    masses : str or None
        Name of the column of masses.
    position, velocity : dict
        Attributes of the columns, as plain data.
    """

    rows: int
    masses: str | None = None
    position: Mapping[str, Any] = field(default_factory=dict)
    velocity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the header of one file says, and what the file holds.

    Parameters
    ----------
    file : SourceFile
    groups : dict
        Attributes, as plain data, of Header, Parameters, Units and Cosmology, where there are.
    types : dict
        Of each particle type that has positions.
    virtual : dict
        Of each virtual dataset, by its name: where its rows are.
    virtual_only : bool
        Whether the file holds no particles itself, but only points to others.
    sources : tuple of SourceFile
        Other files that the particles are in.
    """

    file: SourceFile
    groups: Mapping[str, Mapping[str, Any]]
    types: Mapping[int, TypeFacts] = field(default_factory=dict)
    virtual: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    virtual_only: bool = False
    sources: tuple[SourceFile, ...] = ()

    @property
    def header(self) -> Mapping[str, Any]:
        """Attributes of the group Header."""
        return self.groups["Header"]


def plain(value: Any) -> Any:
    """Return an attribute as a string, a number or a list of them."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
