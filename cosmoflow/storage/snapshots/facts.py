"""Facts about files of the Gadget family, known before any particle is read."""

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
        URL of the source's file.
    dataset : str
        Name of the source in that file.
    first, rows : int
        Rows of the virtual dataset.
    start, step : int
        First row in the source, and the step between rows.
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
    """Particles of one type in one file.

    Parameters
    ----------
    rows : int
        Number of particles.
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
    """Header and contents of one file.

    Parameters
    ----------
    file : SourceFile
    groups : dict
        Attributes, as plain data, of the groups Header, Parameters, Units and Cosmology if present.
    types : dict
        Facts of each particle type that has positions.
    virtual : dict
        Pieces of each virtual dataset, by its name.
    virtual_only : bool
        Whether the file holds no particles itself but only points to other files.
    sources : tuple of SourceFile
        Other files that hold the particles.
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
