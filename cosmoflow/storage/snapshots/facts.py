"""Facts about snapshots and their files, known before any particle is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.storage.snapshots.conventions import Conversion, mean_density
from cosmoflow.storage.snapshots.expansion import Said
from cosmoflow.storage.snapshots.files import SourceFile
from cosmoflow.storage.snapshots.source import Part, Reader
from cosmoflow.units import MASS

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


@dataclass(frozen=True)
class SnapshotFacts:
    """Facts about a snapshot, collected by the code for its format.

    Parameters
    ----------
    url : str
        URL, for error messages.
    format : str
        Name of the format, for display.
    files : sequence of SourceFile
        All files of the snapshot.
    box_size : float
        Box size, Mpc/h.
    parts, left : sequence of Part
        Chosen particles, and those of other types, which are not read.
    counts : dict
        Particles of each type in the whole snapshot.
    conventions : dict
        Units and velocity convention, for display and for the digest.
    header : dict
        Values that identify the snapshot, as plain data.
    notes : list of str
        Assumptions.
    fraction : float
        Share of all particles of the chosen types; less than 1 for random samples.
    left_fractions : dict
        The same for each group of ``left`` that is a random sample.
    mass_unit : str or None
        ``M_sun/h``; None when a column of masses may be in any unit.
    said : dict
        Cosmology as stated in the header.
    """

    url: str
    format: str
    files: Sequence[SourceFile]
    box_size: float
    redshift: float
    cosmology: CosmologyConfig
    parts: Sequence[Part]
    reader: Reader
    conversion: Conversion
    counts: Mapping[str, int]
    conventions: Mapping[str, Any]
    header: Mapping[str, Any]
    notes: list[str]
    said: Said
    fraction: float = 1.0
    left: Sequence[Part] = ()
    left_fractions: Mapping[str, float] = field(default_factory=dict)
    mass_unit: str | None = MASS

    def read_masses(self, part: Part, start: int, stop: int) -> NDArray[Any]:
        """Return rows of a part's column of masses, M_sun/h."""
        return self.reader.read(part, start, stop, ["mass"])[0] * self.conversion.mass

    def share_of(self, mass: float) -> float:
        """Return a mass (M_sun/h) over the mass of matter in the box."""
        return mean_density(mass, self.box_size, self.cosmology.Omega_m)


def plain(value: Any) -> Any:
    """Return an attribute as a string, a number or a list of them."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
