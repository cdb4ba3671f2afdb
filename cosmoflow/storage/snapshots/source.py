"""Snapshots of other codes: the common form that every format is converted to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.base import digest
from cosmoflow.errors import DataError
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.particles import Particles, ParticleStore, refuse_unreal
from cosmoflow.storage.snapshots.conventions import Conversion
from cosmoflow.storage.snapshots.stamps import hash_files, hash_rows, stamp_files
from cosmoflow.units import MASS

# Limits the buffer in the file's units, beside the result of a read, to about 200 MB.
_BLOCK_ROWS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Particles of one type in one file.

    Parameters
    ----------
    file : str
        URL of the file.
    group : str
        Group in the file.
    count : int
        Number of particles.
    mass : float or None
        Mass of each particle, M_sun/h; None when the masses differ or are unknown.
    masses : str or None
        Name of the column of masses, if there is one.
    """

    file: str
    group: str
    count: int
    mass: float | None = None
    masses: str | None = None

    @property
    def label(self) -> str:
        """File and group, for messages."""
        return f"{self.file}, {self.group}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read: position, velocity and, if they have a column, masses."""
        return ("position", "velocity", *(("mass",) if self.masses else ()))


class Reader(Protocol):
    """Picklable reader of one part's rows; opens the file during each call only."""

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return some of a part's columns, rows ``start`` to ``stop``, in the file's units.

        Positions and velocities have shape (n, 3), masses (n,).
        """


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of another code, opened for reading; cheap to pickle and to rebuild.

    Parameters
    ----------
    url : str
        Absolute URL.
    format : str
        Name of the format, for display.
    metadata : BoxMetadata
        Box (Mpc/h), redshift, cosmology, particle mass (M_sun/h); the provenance records
        the conventions that were used and the assumptions.
    parts : tuple of Part
        Chosen particles, in order.
    details : dict
        Additional entries of :func:`describe_snapshot`.
    files : tuple of str
        URLs of all files of the snapshot; empty in the copies sent to workers.
    cautions : tuple of str
        Notes that warn of unexpected results.
    matter_shares : tuple of float
        Possible values of the particles' share of the cosmology's matter; empty when the unit of
        their masses is unknown.
    mass_unit : str or None
        Unit of the masses that are read; None when unknown.
    refusal : DataError or None
        Error of masses that contradict box and cosmology; such a snapshot can only be described.
    """

    url: str
    format: str
    metadata: BoxMetadata
    parts: tuple[Part, ...]
    reader: Reader
    conversion: Conversion
    details: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    matter_shares: tuple[float, ...] = ()
    mass_unit: str | None = MASS
    refusal: DataError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit the state for ``digest``, which only the driver computes."""
        kept = {key: value for key, value in self.__dict__.items() if key != "_stamps"}
        return {**kept, "files": ()}

    @property
    def origin(self) -> dict[str, Any]:
        """Description of the snapshot for an output's provenance."""
        config = self.metadata.provenance["config"]
        return {
            "url": self.url,
            "format": self.format,
            "hints": config["hints"],
            "conventions": config["conventions"],
            "counts": dict(self.details.get("counts", {})),
            "matter_shares": list(self.matter_shares),
        }

    @property
    def count(self) -> int:
        """Number of particles."""
        return sum(part.count for part in self.parts)

    @property
    def has_mass(self) -> bool:
        """Whether the particles have individual masses."""
        return len({part.mass for part in self.parts}) > 1 or any(
            part.masses for part in self.parts
        )

    @cached_property
    def _stamps(self) -> list[list[Any]]:
        """Location, size and modification time (or ETag) of every file."""
        return stamp_files(self.files)

    @property
    def _full_hash(self) -> bool:
        return bool(self.metadata.provenance["config"]["hints"]["full_hash"])

    @cached_property
    def digest(self) -> str:
        """Identity of the files, their sampled rows, the header and the hints."""
        # Stamp first: a change while the rows are read is then noticed at the end of the run.
        stamps = self._stamps
        header = str(self.metadata.provenance["digest"])
        if self._full_hash:
            return digest({"header": header, "content": hash_files(self.files)})
        rows = hash_rows(self.reader, self.parts)
        return digest({"header": header, "files": stamps, "rows": rows})

    def check_unchanged(self) -> None:
        """Refuse a snapshot whose files changed since :attr:`digest` was computed.

        Raises
        ------
        DataError
        """
        now = stamp_files(self.files)
        if now == self._stamps or (self._full_hash and replace(self).digest == self.digest):
            return
        for (url, *before), (_, *after) in zip(self._stamps, now, strict=True):
            if after != before:
                raise changed_input(url, _describe(before), _describe(after))

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of pieces of ``rows`` particles."""
        return [(start, min(start + rows, self.count)) for start in range(0, self.count, rows)]

    def coverage(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return None: the formats do not record where particles are."""
        return None

    def read(self, start: int, stop: int) -> Particles:
        """Read the particles ``start`` to ``stop``, opening only the files that hold them.

        Returns
        -------
        Particles
            Positions in [0, L), comoving Mpc/h; peculiar velocities, km/s; masses in M_sun/h when
            they differ.

        Raises
        ------
        DataError
            A file is damaged, or a particle is not finite or outside the box.
        StorageError
            A file is missing or cannot be read.
        """
        stop = min(stop, self.count)
        rows = max(0, stop - start)
        found = Particles(
            np.empty((rows, 3), np.float32),
            np.empty((rows, 3), np.float32),
            np.empty(rows, np.float64) if self.has_mass else None,
        )
        ends = list(accumulate(part.count for part in self.parts))
        at = start
        while at < stop:
            index = bisect_right(ends, at)
            part = self.parts[index]
            first = at - (ends[index] - part.count)
            last = min(first + stop - at, part.count, first + _BLOCK_ROWS)
            self._fill(found, at - start, part, first, last)
            at += last - first
        return found

    def _fill(self, found: Particles, row: int, part: Part, first: int, last: int) -> None:
        """Read rows of one part into ``found`` from ``row`` on, in our units, and check them."""
        target = slice(row, row + last - first)
        position, velocity, *masses = self.reader.read(part, first, last, part.columns)
        size, where = self.metadata.box_size, f"{part.label}, from {first}"
        found.position[target] = self.conversion.position(position, size, where)
        np.multiply(
            velocity, self.conversion.velocity, out=found.velocity[target], casting="same_kind"
        )
        mass = None if found.mass is None else found.mass[target]
        if mass is not None:
            mass[:] = masses[0] if masses else part.mass
            if masses:
                mass *= self.conversion.mass
        read = Particles(found.position[target], found.velocity[target], mass)
        refuse_unreal(read, size, part.label, first)

    def describe(self) -> dict[str, Any]:
        """Return a summary of the snapshot as plain data."""
        provenance = self.metadata.provenance
        return {
            "kind": "snapshot",
            "format": self.format,
            "particles": self.count,
            "box_size": self.metadata.box_size,
            "redshift": self.metadata.redshift,
            "cosmology": self.metadata.cosmology.model_dump(mode="json"),
            "particle_mass": self.metadata.particle_mass,
            "digest": self.digest,
            "conventions": provenance["config"]["conventions"],
            "notes": provenance["notes"],
            **({} if self.refusal is None else {"refused": str(self.refusal)}),
            **self.details,
        }


def _describe(stamp: list[Any]) -> str:
    size, changed = stamp
    return (
        f"{size} bytes, changed at {changed} ns"
        if changed.isdigit()
        else f"{size} bytes, {changed}"
    )


ParticleSource = ParticleStore | Snapshot
"""Particles that can be read piece by piece: our particle store or a snapshot of another code."""
