"""Stores of particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.columns import Column, open_column
from cosmoflow.storage.identity import Store, checksum_array, identify_store
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger, writing_shard
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.outputs import Existing, begin_group, finish_group
from cosmoflow.storage.together import together
from cosmoflow.storage.transfer import write_part
from cosmoflow.storage.urls import damage, open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS
from cosmoflow.units import LENGTH, MASS, VELOCITY

LEDGER = "particles"
COVERAGE = f"{LEDGER_GROUP}/coverage"
"""Array of the coverage of every shard: the bins along each axis that have particles."""
UNKNOWN_UNIT = "unknown"
COVERAGE_BINS = 256
"""Bins of the coverage along every axis."""
_COVERED_AT_ONCE: Final = 128
"""Requests for the coverage of shards that run at the same time: each is for less than 1 kB."""
Rows = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Function from a range of particles (start, stop) to their positions and velocities."""

ROWS_PER_SHARD = 1 << 20
ROWS_PER_CHUNK = 1 << 19


MOST_SHARDS, MOST_ROWS_PER_SHARD = 1 << 14, 1 << 24
"""Shards become larger before there are more of them: each takes a few requests and a note."""


def shard_rows(count: int) -> int:
    """Return the particles of a shard of a store of ``count`` particles."""
    rows = ROWS_PER_SHARD
    while rows * MOST_SHARDS < count and rows < MOST_ROWS_PER_SHARD:
        rows *= 2
    return min(rows, -(-count // ROWS_PER_CHUNK) * ROWS_PER_CHUNK)


@dataclass(frozen=True, slots=True)
class Particles:
    """Some particles in memory.

    Parameters
    ----------
    position : (n, 3) float32
        Comoving Mpc/h, in [0, box).
    velocity : (n, 3) float32
        Peculiar velocity, km/s.
    mass : (n,) float64 or None
        Masses, all in the same unit; None if the particles have equal masses.
    """

    position: NDArray[np.float32]
    velocity: NDArray[np.float32]
    mass: NDArray[np.float64] | None = None


def refuse_unreal(particles: Particles, box_size: float, where: str, first: int = 0) -> None:
    """Refuse particles as :func:`cosmoflow.numerics.painting.check_particles` does."""
    # Imported here, because it loads numba, which opening a store does not need.
    from cosmoflow.numerics.painting import check_particles

    position, velocity, mass = particles.position, particles.velocity, particles.mass
    check_particles(position, velocity, box_size, where, first, mass)


class ParticleStore(Store):
    """A particle store opened for reading, by its URL.

    Raises
    ------
    StorageError, DataError, IncompleteError
        The store cannot be reached, is not a particle store, or is not complete.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, "particles")
        self._position = self._column("position", LENGTH)
        self._velocity = self._column("velocity", VELOCITY, self.count)
        self._mass = self._column("mass", None, self.count) if "mass" in self.group else None
        if self._mass is None and "masses" in self.group:
            raise DataError(
                "the masses have another name than the one that is read",
                where=url,
                value="masses",
                limit="mass",
                remedy="rename it with xarray: dataset.rename(masses='mass'), and write it again",
            )
        self._coverage = self._noted_coverage()
        if self.count == 0:
            raise DataError("the particle store holds no particles", where=url)

    def __repr__(self) -> str:
        size, redshift = self.metadata.box_size, self.metadata.redshift
        return (
            f"ParticleStore({self.url!r}): {self.count:,} particles, box of {size:g} Mpc/h, "
            f"z = {redshift:g}"
        )

    def _column(self, name: str, unit: str | None, count: int | None = None) -> Column:
        vector = name != "mass"
        return open_column(self.group, name, unit, self.url, vector=vector, count=count)

    @property
    def own(self) -> bool:
        """Whether cosmoflow wrote the store."""
        return LEDGER_GROUP in self.group

    @property
    def count(self) -> int:
        """Number of particles."""
        return self._position.count

    @property
    def has_mass(self) -> bool:
        """Whether the particles have individual masses."""
        return self._mass is not None

    @cached_property
    def digest(self) -> str:
        """Identity of what the store holds, see ``cosmoflow.storage.identity``."""
        columns = {"position": self._position, "velocity": self._velocity, "mass": self._mass}
        return identify_store(
            self.metadata,
            {
                name: checksum_array(self.url, name, column.array)
                for name, column in columns.items()
                if column is not None
            },
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """An empty tuple: the run that made the store has given its warnings."""
        return ()

    @property
    def origin(self) -> dict[str, Any]:
        """Provenance of the snapshot that the particles come from; may be empty."""
        return dict(self.metadata.provenance.get("snapshot", {}))

    @property
    def matter_shares(self) -> tuple[float, ...]:
        """Possible shares of the matter in the particles: those of the snapshot, by default 1."""
        return tuple(self.origin.get("matter_shares", (1.0,)))

    @property
    def mass_unit(self) -> str | None:
        """Unit of the masses; None if the store does not say."""
        if self._mass is None:
            return MASS
        unit = self._mass.array.attrs.get("units")
        return None if unit is None else str(unit)

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of pieces of about ``rows`` particles, along whole chunks."""
        chunk = self._position.chunk
        step = max(1, rows // chunk) * chunk if rows >= chunk else rows
        return [(start, min(start + step, self.count)) for start in range(0, self.count, step)]

    def coverage(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return which of equal bins along x, y and z have particles ``start`` to ``stop``.

        Shape (3, COVERAGE_BINS). The coverage is that of whole shards, so it may include bins of
        other particles. None if the store has no coverage.
        """
        if self._coverage is None:
            return None
        rows = self._position.shard
        found = np.bitwise_or.reduce(self._covered[start // rows : -(-stop // rows)], axis=0)
        return np.unpackbits(found, axis=-1).astype(np.bool_)

    @cached_property
    def _covered(self) -> NDArray[np.uint8]:
        """The coverage of all shards in bits, shape (shards, 3, COVERAGE_BINS / 8).

        It is read whole, and travels with the store to the tasks: a request for each piece of the
        particles would take a driver minutes.
        """
        at_once = zarr.config.set({"async.concurrency": _COVERED_AT_ONCE})
        with storage_errors(self.url), damage(f"{self.url}, {COVERAGE}"), at_once:
            return np.packbits(np.asarray(self._coverage[:], np.bool_), axis=-1)

    def _noted_coverage(self) -> Any:
        """Return the array of the coverage, or None; refuse one that does not fit the particles."""
        with storage_errors(self.url), damage(f"{self.url}, {COVERAGE}"):
            noted = self.group.get(COVERAGE)
        if noted is None:
            return None
        expected = (-(-self.count // self._position.shard), 3, COVERAGE_BINS)
        if not isinstance(noted, zarr.Array) or noted.shape != expected:
            raise DataError(
                "what the store says of where its particles are does not fit them",
                where=f"{self.url}, {COVERAGE}",
                value=getattr(noted, "shape", "no array"),
                limit=expected,
                remedy=f"delete {COVERAGE}; the store works without it",
            )
        return noted

    def read(self, start: int, stop: int) -> Particles:
        """Read the particles ``start`` to ``stop``.

        Raises
        ------
        DataError
            A chunk is damaged or missing, or a particle is not finite or outside the box.
        """

        def rows(column: Column | None) -> Any:
            if column is None:
                return None
            place = f"{self.url}, {column.array.basename}, particles {start} to {stop}"
            with storage_errors(self.url), damage(place):
                return column.read(start, stop)

        columns = (self._position, self._velocity, self._mass)
        position, velocity, mass = together(self.url, rows, columns)
        size = self.metadata.box_size
        found = Particles(
            _round_positions(position, size),
            np.asarray(velocity, np.float32),
            None if mass is None else np.asarray(mass, np.float64),
        )
        refuse_unreal(found, size, self.url, start)
        return found


def _round_positions(position: NDArray[Any], box_size: float) -> NDArray[np.float32]:
    """Return positions as float32. Those that round up to the side of the box become 0."""
    rounded = np.asarray(position, np.float32)
    # Compare types, not objects: NumPy may return a new view even if nothing is converted.
    if position.dtype == np.float32:
        return rounded
    beyond = (rounded >= np.float32(box_size)) & (position < box_size)
    return np.where(beyond, np.float32(0.0), rounded)


def create_particles(
    url: str,
    count: int,
    metadata: BoxMetadata,
    existing: Existing = "error",
    *,
    mass: bool = False,
    mass_unit: str | None = MASS,
) -> bool:
    """Create an empty particle store, marked incomplete.

    Parameters
    ----------
    mass : bool
        Whether the particles have individual masses.
    mass_unit : str or None
        Unit of the masses; None if it is not known.

    Returns
    -------
    bool
        Whether a store of the same run existed and is continued.
    """
    with storage_errors(url):
        group, resumed = begin_group(url, metadata.to_attributes("particles"), existing)
        if resumed and f"{LEDGER_GROUP}/{LEDGER}" in group:
            return True
        shard = shard_rows(count)
        columns: dict[str, tuple[str, tuple[int, ...]]]
        columns = {"position": (LENGTH, (3,)), "velocity": (VELOCITY, (3,))}
        if mass:
            columns["mass"] = (mass_unit or UNKNOWN_UNIT, ())
        for name, (units, row) in columns.items():
            group.create_array(
                name,
                shape=(count, *row),
                chunks=(ROWS_PER_CHUNK, *row),
                shards=(shard, *row),
                dtype="float32" if row else "float64",
                # A missing chunk must not read as particles at rest at the origin.
                fill_value=float("nan"),
                compressors=COMPRESSORS,
                dimension_names=("particle", "component")[: 1 + len(row)],
                attributes={"units": units},
                overwrite=True,
            )
        Ledger.create(group, LEDGER, -(-count // shard))
        group.create_array(
            COVERAGE,
            shape=(-(-count // shard), 3, COVERAGE_BINS),
            chunks=(1, 3, COVERAGE_BINS),
            dtype="uint8",
            fill_value=1,
            dimension_names=("shard", "component", "bin"),
            compressors=COMPRESSORS,
            overwrite=True,
        )
    return False


def write_particles(url: str, rows: Rows, *, digest: str | None = None) -> None:
    """Fill a store that :func:`create_particles` made, shard by shard, skipping finished ones.

    Parameters
    ----------
    url : str
        URL of the store.
    rows : callable
        From a range of particles (start, stop) to their positions, (m, 3) float32, comoving Mpc/h
        in [0, box), and velocities, km/s. It is called for one shard at a time.
    digest : str, optional
        Digest of the run, see :func:`write_shard`.
    """
    for shard, start, stop in unfinished_rows(url):
        write_shard(url, shard, start, Particles(*rows(start, stop)), digest=digest)


def unfinished_rows(url: str) -> list[tuple[int, int, int]]:
    """Return the shards that are not finished, each as (shard, start, stop) of its particles."""
    group = open_group(url)
    with storage_errors(url):
        finished = Ledger(group, LEDGER).finished()
    position: Any = group["position"]
    count, size = int(position.shape[0]), int(position.shards[0])
    return [
        (shard, shard * size, min((shard + 1) * size, count))
        for shard in (~finished).nonzero()[0].tolist()
    ]


def write_shard(
    url: str, shard: int, start: int, particles: Particles, *, digest: str | None = None
) -> None:
    """Write a shard of a particle store, then mark it as finished.

    Parameters
    ----------
    url : str
        URL of a store that :func:`create_particles` made.
    shard, start : int
        Shard and its first particle, as :func:`unfinished_rows` returns them.
    particles : Particles
        All particles of the shard, with masses if the store has masses.
    digest : str, optional
        Digest of the run, to refuse a store that another run has begun again.

    Raises
    ------
    SupersededError
        Another run has taken over the store.
    """
    rows = start, start + len(particles.position)
    with writing_shard(url, LEDGER, shard, digest) as group:
        for name in ("position", "velocity", "mass"):
            if (values := getattr(particles, name)) is not None:
                array: Any = group[name]
                write_part(array, [rows, *((0, length) for length in array.shape[1:])], values)
        if COVERAGE in group:
            covered: Any = group[COVERAGE]
            size = BoxMetadata.from_attributes(group.attrs, url).box_size
            covered[shard] = _coverage(particles.position, size)


def _coverage(position: NDArray[np.float32], box_size: float) -> NDArray[np.uint8]:
    """Return which of equal bins along x, y and z hold particles, (3, COVERAGE_BINS)."""
    covered = np.zeros((3, COVERAGE_BINS), np.uint8)
    for axis, column in zip(covered, position.T, strict=True):
        bins = (column * np.float32(COVERAGE_BINS / box_size)).astype(np.int16)
        axis[bins.clip(0, len(axis) - 1)] = 1
    return covered


def store_particles(
    url: str,
    position: NDArray[np.float32],
    velocity: NDArray[np.float32],
    metadata: BoxMetadata,
    existing: Existing = "error",
) -> ParticleStore:
    """Write particles in memory as a complete store.

    Parameters
    ----------
    url : str
        URL of the store.
    position, velocity : (n, 3) float32
        Comoving positions, Mpc/h in [0, box); peculiar velocities, km/s.
    metadata : BoxMetadata
        Box, redshift, cosmology and provenance of the particles.
    existing : {"error", "resume", "overwrite"}
        Treatment of an existing store.

    Raises
    ------
    DataError
        A particle is not finite or is outside the box, or the arrays differ in shape.
    OutputExistsError, StorageError
    """
    if position.shape != velocity.shape or position.shape[1:] != (3,) or not len(position):
        raise DataError(
            "positions and velocities must have one shape",
            where=url,
            value=f"{position.shape} and {velocity.shape}",
            limit="(n, 3)",
        )
    refuse_unreal(Particles(position, velocity), metadata.box_size, url)
    create_particles(url, len(position), metadata, existing)
    write_particles(url, lambda start, stop: (position[start:stop], velocity[start:stop]))
    finish_group(open_group_for_writing(url))
    return ParticleStore(url)
