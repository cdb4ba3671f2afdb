"""The tasks of `paint`: particles to the shards that they touch, shards to their fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.settings import PaintConfig
from cosmoflow.engine import Handout
from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import grid_blocks, shards_near
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.painting import (
    SCHEME_ORDER,
    BlockPainter,
    Piece,
    batch_size,
    bucket_particles,
    cut_batches,
    fill_reach,
    fill_velocity,
)
from cosmoflow.stages.inputs.expansion import hubble_rate
from cosmoflow.storage.field_writing import write_block
from cosmoflow.storage.ledger import write_count
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.particles import Particles
from cosmoflow.storage.snapshots import ParticleSource
from cosmoflow.units import COMPONENTS, INTERLACED

INTERLACEABLE = ("density", "momentum")
"""Fields that are linear in the particles: a second grid makes their spectra better."""

Totals = tuple[ExactSum, ...]
"""Sums of the masses and of the momenta along x, y and z of some particles."""
BoxTotals = tuple[float, float, float, float]
"""The same sums over all particles, rounded."""


class Counted(Protocol):
    """What plans need to know about particles."""

    @property
    def count(self) -> int:
        """Number of particles."""

    @property
    def has_mass(self) -> bool:
        """Whether the particles have individual masses."""

    @property
    def metadata(self) -> BoxMetadata:
        """Metadata of their box."""

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of pieces of about ``rows`` particles."""

    def coverage(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return which of equal bins along x, y and z may hold the particles ``start`` to ``stop``.

        Shape (3, bins); None if unknown.
        """


def painted_variables(config: PaintConfig) -> tuple[str, ...]:
    """Return the variables that painting writes."""
    second = [name for name in config.fields if name in INTERLACEABLE and config.interlaced]
    return (*config.fields, *(INTERLACED + name for name in second))


def reach_of(config: PaintConfig, count: int) -> int:
    """Return the distance in cells within which a shard needs particles to fill its empty cells.

    0 if empty cells are not filled.
    """
    return fill_reach(config.grid, count) if config.fill == "nearest" else 0


def bucket_task(
    store: ParticleSource,
    pieces: Sequence[tuple[int, int]],
    box_size: float,
    config: PaintConfig,
    number: int,
) -> Handout:
    """Read a piece of the particles and hand them to all shards, with the totals of the piece.

    A resumed run may use the parts that a killed run handed on. They must therefore not depend on
    which shards were missing.

    Raises
    ------
    DataError
        A particle is not where the store says that its particles are.
    """
    start, stop = pieces[number]
    particles = store.read(start, stop)
    if config.redshift_space is not None:
        particles = _in_redshift_space(particles, store.metadata, config.redshift_space)
    totals = _totals(particles)
    moving = set(config.fields) != {"density"}
    buckets = bucket_particles(
        (particles.position, particles.velocity if moving else None, particles.mass),
        config.grid,
        box_size,
        config.shard_cells,
        config.scheme,
        interlaced=config.interlaced,
        reach=reach_of(config, store.count),
    )
    near = shards_near_piece(store, start, stop, config)
    strays = sum(len(buckets[shard][0]) for shard in np.flatnonzero(~near))
    if strays:
        raise DataError(
            "particles are not where the store says that they are",
            where=f"{store.url}, particles {start} to {stop}",
            value=f"{strays} of them",
            remedy="delete ledger/coverage of the store; it works without it",
        )
    return Handout([bucket if len(bucket[0]) else None for bucket in buckets], totals)


def shards_near_piece(
    store: Counted, start: int, stop: int, config: PaintConfig
) -> NDArray[np.bool_]:
    """Return which shards of the grid the particles ``start`` to ``stop`` may touch, in C order."""
    covered = store.coverage(start, stop)
    if covered is None:
        return np.ones(len(grid_blocks(config.grid, config.shard_cells)), np.bool_)
    if config.redshift_space is not None:
        covered = covered.copy()
        covered[COMPONENTS.index(config.redshift_space)] = True
    # One more cell than a cloud spans allows for the rounding of positions to bins and to cells.
    cloud = SCHEME_ORDER[config.scheme] + int(config.interlaced) + 1
    reach = max(cloud, reach_of(config, store.count) + 2)
    x, y, z = (shards_near(bins, config.grid, config.shard_cells, reach) for bins in covered)
    near: NDArray[np.bool_] = (x[:, None, None] & y[:, None] & z).reshape(-1)
    return near


def _in_redshift_space(particles: Particles, metadata: BoxMetadata, axis: str) -> Particles:
    """Move particles to where their redshifts put them, ``s = x + v / (a H)`` along one axis."""
    column, size, rate = COMPONENTS.index(axis), metadata.box_size, hubble_rate(metadata)
    position = particles.position.copy()
    moved = position[:, column] + particles.velocity[:, column].astype(np.float64) / rate
    position[:, column] = moved % size
    # A position just below the box size may round to it, which is the same place as 0.
    position[position[:, column] >= np.float32(size), column] = 0.0
    return replace(particles, position=position)


def _totals(particles: Particles) -> Totals:
    """Add up masses (1 each without masses) and momenta exactly, so that no order matters."""
    mass, velocity = particles.mass, particles.velocity.T
    if mass is None:
        return (ExactSum(Fraction(len(particles.position))), *map(ExactSum.of, velocity))
    return (ExactSum.of(mass), *(ExactSum.of(component * mass) for component in velocity))


def add_totals(number: int, totals: Sequence[Totals]) -> BoxTotals:
    """Add up the totals of all pieces.

    Raises
    ------
    DataError
        The particles have no mass.
    """
    mass, *momentum = (float(sum(column, ExactSum())) for column in zip(*totals, strict=True))
    if not mass > 0.0:
        raise DataError("the particles have no mass", value=mass, limit="above 0")
    x, y, z = momentum
    return mass, x, y, z


def paint_task(
    out: str,
    digest: str,
    count: int,
    box_size: float,
    config: PaintConfig,
    known: BoxTotals | None,
    shard: int,
    buckets: Iterable[Piece],
    found: Sequence[BoxTotals] = (),
) -> int:
    """Paint one shard from its particles and write it, with the number of its empty cells.

    The buckets are painted in batches as they arrive, in any order. Nothing is written before all
    have been read, since the iteration ends with an error if one is lost. The totals of all
    particles are ``known``, or ``found`` in this run.
    """
    mass, *momentum = known or found[0]
    block = grid_blocks(config.grid, config.shard_cells)[shard]

    def make_painter(names: tuple[str, ...], shift: float) -> BlockPainter:
        return BlockPainter(
            block,
            config.grid,
            box_size,
            config.scheme,
            count=count,
            mean_mass=mass / count,
            background=np.array(momentum) / mass,
            fields=names,
            shift=shift,
        )

    # The density is always painted: it shows which cells are empty.
    painters = [make_painter(tuple({**dict.fromkeys(config.fields), "density": None}), 0.0)]
    if config.interlaced:
        names = tuple(name for name in config.fields if name in INTERLACEABLE)
        painters.append(make_painter(names, 0.5))
    fields, particles = _paint_batches(painters, buckets, batch_size(config.shard_cells**3))
    density, unfilled = fields[0]["density"], 0
    if config.fill == "nearest":
        velocity, again = fields[0]["velocity"], particles or buckets
        unfilled = fill_velocity(
            velocity, density, again, block, config.grid, box_size, count=count
        )
    particles.clear()
    empty, summed = int((density == 0.0).sum()), fields[0].get("velocity")
    write_count(out, shard, empty, unfilled, velocity=summed, digest=digest)
    written: dict[str, NDArray[np.float32]] = {name: fields[0][name] for name in config.fields}
    if config.interlaced:
        written |= {INTERLACED + name: values for name, values in fields[1].items()}
    write_block(out, block, shard, written, digest=digest)
    return shard


def _paint_batches(
    painters: Sequence[BlockPainter], buckets: Iterable[Piece], rows: int
) -> tuple[list[dict[str, NDArray[np.float32]]], list[Piece]]:
    """Paint particles in batches of at most ``rows``.

    Returns
    -------
    fields : list of dict
        Fields of each painter.
    particles : list of Piece
        All particles, if a single batch holds them; otherwise empty.
    """
    begun = False
    for batch, more in cut_batches(buckets, rows):
        if not (begun or more):
            return [painter.finish(batch) for painter in painters], batch
        for painter in painters:
            painter.add(batch)
        # Its particles are released before the next batch is collected.
        batch.clear()
        begun = True
    return [painter.finish() for painter in painters], []
