"""Stores of particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.painting import check_particles
from cosmoflow.storage.columns import Column, open_column
from cosmoflow.storage.identity import changed_input, checksum_array, identify_store
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger, writing_shard
from cosmoflow.storage.metadata import BoxMetadata, check_group
from cosmoflow.storage.outputs import Existing, begin_group, finish_group
from cosmoflow.storage.urls import damage, open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS
from cosmoflow.units import LENGTH, MASS, VELOCITY

LEDGER = "particles"
COVERAGE = f"{LEDGER_GROUP}/coverage"
"""Where in the box the particles of every shard are: who wants a place reads only these."""
UNKNOWN_UNIT = "unknown"
COVERAGE_BINS = 256
"""Bins of the coverage along every axis."""
Rows = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From the first particle and the one after the last to their positions and velocities."""

ROWS_PER_SHARD = 1 << 20
ROWS_PER_CHUNK = 1 << 19


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
        In any one unit; None when all are equal.
    """

    position: NDArray[np.float32]
    velocity: NDArray[np.float32]
    mass: NDArray[np.float64] | None = None


class ParticleStore:
    """A particle store opened for reading.

    Parameters
    ----------
    url : str
        Where it is.

    Raises
    ------
    StorageError, DataError, IncompleteError
        It cannot be reached, is no particle store, or is not whole.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._group = open_group(url)
        check_group(self._group, "particles", url)
        self.metadata = BoxMetadata.from_attributes(self._group.attrs, url)
        self._position = self._column("position", LENGTH)
        self._velocity = self._column("velocity", VELOCITY, self.count)
        self._mass = self._column("mass", None, self.count) if "mass" in self._group else None
        if self._mass is None and "masses" in self._group:
            raise DataError(
                "the masses have another name than the one that is read",
                where=url, value="masses", limit="mass",
                remedy="rename it with xarray: dataset.rename(masses='mass'), and write it again",
            )  # fmt: skip
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
        return open_column(self._group, name, unit, self.url, vector=vector, count=count)

    @property
    def own(self) -> bool:
        """Whether cosmoflow wrote the store."""
        return LEDGER_GROUP in self._group

    @property
    def count(self) -> int:
        """Number of particles."""
        return self._position.count

    @property
    def has_mass(self) -> bool:
        """Whether the particles have masses of their own."""
        return self._mass is not None

    @cached_property
    def digest(self) -> str:
        """Identity of what the store holds, see :mod:`cosmoflow.storage.identity`."""
        columns = {"position": self._position, "velocity": self._velocity, "mass": self._mass}
        return identify_store(
            self.metadata,
            {
                name: checksum_array(self.url, name, column.array)
                for name, column in columns.items()
                if column is not None
            },
        )

    def check_unchanged(self) -> None:
        """Refuse a store that was changed since :attr:`digest` was asked for.

        Raises
        ------
        DataError
        """
        if (now := type(self)(self.url).digest) != self.digest:
            raise changed_input(self.url, self.digest, now)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Nothing: the run that made the store gave its warnings then."""
        return ()

    @property
    def origin(self) -> dict[str, Any]:
        """What the provenance says of the snapshot that the particles come from; may be empty."""
        return dict(self.metadata.provenance.get("snapshot", {}))

    @property
    def matter_shares(self) -> tuple[float, ...]:
        """Shares of the matter that the particles may make up: all of it, or the snapshot's."""
        return tuple(self.origin.get("matter_shares", (1.0,)))

    @property
    def mass_unit(self) -> str | None:
        """Unit of the masses; None when the store does not say."""
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

        Shape (3, COVERAGE_BINS), with some particles more: whole shards. None when nobody noted it.
        """
        if self._coverage is None:
            return None
        rows = self._shard_rows
        with storage_errors(self.url), damage(f"{self.url}, {COVERAGE}"):
            found = np.asarray(self._coverage[start // rows : -(-stop // rows)], np.bool_)
        covered: NDArray[np.bool_] = np.any(found, axis=0)
        return covered

    @property
    def _shard_rows(self) -> int:
        return self._position.shard

    def _noted_coverage(self) -> Any:
        """Return the array of the coverage, or None; refuse one that is of other particles."""
        with storage_errors(self.url), damage(f"{self.url}, {COVERAGE}"):
            noted = self._group.get(COVERAGE)
        if noted is None:
            return None
        expected = (-(-self.count // self._shard_rows), 3, COVERAGE_BINS)
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

        def rows(column: Column) -> NDArray[Any]:
            place = f"{self.url}, {column.array.basename}, particles {start} to {stop}"
            with storage_errors(self.url), damage(place):
                return column.read(start, stop)

        size = self.metadata.box_size
        found = Particles(
            _round_positions(rows(self._position), size),
            np.asarray(rows(self._velocity), np.float32),
            None if self._mass is None else np.asarray(rows(self._mass), np.float64),
        )
        check_particles(found.position, found.velocity, size, self.url, start, found.mass)
        return found


def _round_positions(position: NDArray[Any], box_size: float) -> NDArray[np.float32]:
    """Return positions as float32; those just below the side round to it, which is 0 again."""
    rounded = np.asarray(position, np.float32)
    # By type: even where nothing is converted, NumPy may return another view of the same numbers.
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
    url : str
        Of the store.
    count : int
        Number of particles.
    metadata : BoxMetadata
        Its attributes.
    existing : {"error", "resume", "overwrite"}
        What to do with an output that is there already.
    mass : bool
        Whether the particles have masses of their own.
    mass_unit : str or None
        Their unit; None when it is not known.

    Returns
    -------
    bool
        Whether a store of the same run was there already and is to be continued.
    """
    with storage_errors(url):
        group, resumed = begin_group(url, metadata.to_attributes("particles"), existing)
        if resumed and f"{LEDGER_GROUP}/{LEDGER}" in group:
            return True
        shard = min(ROWS_PER_SHARD, -(-count // ROWS_PER_CHUNK) * ROWS_PER_CHUNK)
        columns: list[tuple[str, str, tuple[int, ...]]] = [
            ("position", LENGTH, (3,)),
            ("velocity", VELOCITY, (3,)),
        ]
        if mass:
            columns.append(("mass", mass_unit or UNKNOWN_UNIT, ()))
        for name, units, row in columns:
            group.create_array(
                name,
                shape=(count, *row),
                chunks=(ROWS_PER_CHUNK, *row),
                shards=(shard, *row),
                dtype="float32" if row else "float64",
                # A chunk that went missing must not read as particles at rest in the corner.
                fill_value=float("nan"),
                compressors=COMPRESSORS,
                dimension_names=("particle", "component")[: 1 + len(row)],
                attributes={"units": units},
                overwrite=True,
            )
        Ledger.create(group, LEDGER, -(-count // shard))
        group.create_array(
            COVERAGE, shape=(-(-count // shard), 3, COVERAGE_BINS), chunks=(1, 3, COVERAGE_BINS),
            dtype="uint8", fill_value=1, dimension_names=("shard", "component", "bin"),
            compressors=COMPRESSORS, overwrite=True,
        )  # fmt: skip
    return False


def write_particles(url: str, rows: Rows, *, digest: str | None = None) -> None:
    """Fill a store that :func:`create_particles` made, shard by shard, skipping finished ones.

    Parameters
    ----------
    url : str
        The store.
    rows : callable
        Makes the positions, (m, 3) float32, comoving Mpc/h in [0, box), and the velocities, km/s,
        of the particles from one index to another; only one shard of them is held at a time.
    digest : str, optional
        As :func:`write_shard` takes it.
    """
    for shard, start, stop in unfinished_rows(url):
        write_shard(url, shard, start, Particles(*rows(start, stop)), digest=digest)


def unfinished_rows(url: str) -> list[tuple[int, int, int]]:
    """Return shard, first particle and the one after the last of what is not written yet."""
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
    """Write one whole shard of a particle store, then mark it finished.

    Parameters
    ----------
    url : str
        Of a store that :func:`create_particles` made.
    shard, start : int
        As :func:`unfinished_rows` gives them.
    particles : Particles
        All of the shard, with masses where the store has them.
    digest : str, optional
        Of the run whose shard it is: what another one has begun anew there is left alone.

    Raises
    ------
    SupersededError
        The store is another run's by now.
    """
    part = slice(start, start + len(particles.position))
    columns: dict[str, NDArray[Any]] = {
        "position": particles.position,
        "velocity": particles.velocity,
    }
    if particles.mass is not None:
        columns["mass"] = particles.mass
    with writing_shard(url, LEDGER, shard, digest) as group:
        for name, values in columns.items():
            array: Any = group[name]
            array.with_config({"write_empty_chunks": True})[part] = values
        if COVERAGE in group:
            covered: Any = group[COVERAGE]
            size = BoxMetadata.from_attributes(group.attrs, url).box_size
            covered[shard] = _coverage(particles.position, size)


def _coverage(position: NDArray[np.float32], box_size: float) -> NDArray[np.uint8]:
    """Return which of equal bins along x, y and z hold particles, (3, COVERAGE_BINS)."""
    covered = np.zeros((3, COVERAGE_BINS), np.uint8)
    for axis, column in zip(covered, position.T, strict=True):
        axis[
            (column * np.float32(COVERAGE_BINS / box_size)).astype(np.int16).clip(0, len(axis) - 1)
        ] = 1
    return covered


def store_particles(
    url: str,
    position: NDArray[np.float32],
    velocity: NDArray[np.float32],
    metadata: BoxMetadata,
    existing: Existing = "error",
) -> ParticleStore:
    """Write particles in memory as a whole store.

    Parameters
    ----------
    url : str
        Of the store.
    position, velocity : (n, 3) float32
        Comoving Mpc/h in [0, box); peculiar km/s.
    metadata : BoxMetadata
        Box, redshift, cosmology and where the particles come from.
    existing : {"error", "resume", "overwrite"}
        What to do with a store that is there already.

    Raises
    ------
    DataError
        A particle is not finite or lies outside the box, or the arrays differ in shape.
    OutputExistsError, StorageError
    """
    if position.shape != velocity.shape or position.shape[1:] != (3,) or not len(position):
        raise DataError(
            "positions and velocities must have one shape",
            where=url,
            value=f"{position.shape} and {velocity.shape}",
            limit="(n, 3)",
        )
    check_particles(position, velocity, metadata.box_size, url)
    create_particles(url, len(position), metadata, existing)
    write_particles(url, lambda start, stop: (position[start:stop], velocity[start:stop]))
    finish_group(open_group_for_writing(url))
    return ParticleStore(url)
