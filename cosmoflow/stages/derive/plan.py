"""Validated requests of `derive`, and their plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cosmoflow.config.settings import DeriveConfig
from cosmoflow.errors import ConfigError
from cosmoflow.numerics.blocks import axis_blocks, grid_blocks
from cosmoflow.numerics.smoothing import NARROWEST, gaussian_reach
from cosmoflow.stages import costs
from cosmoflow.stages.derive.recipes import recipe_of
from cosmoflow.stages.inputs.particle_counts import COUNT, particles_per_cell
from cosmoflow.stages.requests import ONCE, stored_shards
from cosmoflow.stages.run import Plan
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.requests import (
    Requests,
    count_distinct,
    count_reads,
    count_spans,
    count_writes,
)
from cosmoflow.storage.variables import count_parts

WIDEST = 6
"""Least width of a box in smoothing radii: wider Gaussians leave only the mean of the box."""


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request to derive fields of a store.

    Parameters
    ----------
    fields : str
        URL of the store.
    names : tuple of str
        The fields, sorted.
    config : DeriveConfig
        Method and smoothing.
    shard : int
        Cells per axis that one task writes.
    halo : int
        Cells around a shard that its task also reads.
    particles_per_cell : float or None
        Mean number of particles in a cell, for the field ``count``.
    """

    fields: str
    names: tuple[str, ...]
    config: DeriveConfig
    shard: int
    halo: int
    particles_per_cell: float | None = None

    @property
    def spectral(self) -> bool:
        """Whether derivatives and smoothing are spectral, over the whole box."""
        return self.config.method == "spectral"

    @property
    def parts(self) -> int:
        """Numbers written per cell."""
        return sum(count_parts(name) for name in self.names)

    @property
    def inputs(self) -> list[tuple[str, bool]]:
        """The variables that are read, and whether each is then smoothed."""
        recipes = [recipe_of(name) for name in self.names]
        return sorted({(name, one.smoothed) for one in recipes for name in one.inputs})

    @property
    def needs_background(self) -> bool:
        """Whether the mean flow of the box is needed."""
        return "velocity" in self.names


def check_work(store: FieldStore, names: str | Sequence[str], config: DeriveConfig) -> Work:
    """Check a request and return the work.

    Raises
    ------
    ConfigError
        A field is unknown, or the smoothing does not suit the fields or the grid.
    DataError
        The store lacks a variable, or the number of its particles is not known.
    """
    if not names:
        raise ConfigError("no field to derive is given", where="--field")
    names = tuple(sorted({names} if isinstance(names, str) else set(names)))
    recipes = [recipe_of(name) for name in names]
    reach = _check_smoothing(store, any(one.smoothed for one in recipes), config)
    for one in recipes:
        store.require(*one.inputs)
    spectral = config.method == "spectral"
    slopes = max(int(one.slopes) for one in recipes)
    return Work(
        store.url,
        names,
        config,
        min(config.shard or store.shard, store.grid),
        0 if spectral else slopes + reach,
        particles_per_cell(store) if COUNT in names else None,
    )


def _check_smoothing(store: FieldStore, smoothed: bool, config: DeriveConfig) -> int:
    """Return the reach of the Gaussian in real space, in cells."""
    radius, cell = config.smoothing, store.cell_size
    if not smoothed:
        if radius is not None:
            raise ConfigError(
                "a smoothing radius is given, but no field is smoothed",
                where="--smoothing",
                value=f"{radius:g} Mpc/h",
                remedy="name a field smoothed_..., or leave the radius out",
            )
        return 0
    if radius is None:
        raise ConfigError(
            "a smoothed field needs the radius of the Gaussian",
            where="--smoothing",
            remedy="give it in Mpc/h",
        )
    size = store.metadata.box_size
    if radius > size / WIDEST:
        raise ConfigError(
            "the smoothing radius is too large for the box",
            where="--smoothing",
            value=f"{radius:g} Mpc/h",
            limit=f"a box of {size:g} Mpc/h over {WIDEST}: {size / WIDEST:g} Mpc/h",
        )
    if config.method == "difference" and radius < NARROWEST * cell:
        raise ConfigError(
            "the Gaussian is too narrow to be sampled by the cells",
            where="--smoothing",
            value=f"{radius:g} Mpc/h",
            limit=f"{NARROWEST:g} cells of {cell:g} Mpc/h or more: {NARROWEST * cell:g} Mpc/h",
            remedy="--method spectral, or a finer grid",
        )
    return gaussian_reach(radius, cell)


@dataclass(frozen=True)
class DerivePlan(Plan):
    """The plan of a derivation.

    Parameters
    ----------
    fields : list of str
        The fields.
    method : str
        ``difference`` or ``spectral``.
    smoothing : float or None
        Radius of the Gaussian, Mpc/h.
    grid, shard, shards : int
        Cells per axis of the box and of a shard, and number of shards.
    """

    fields: list[str]
    method: str
    smoothing: float | None
    grid: int
    shard: int
    shards: int


@dataclass(frozen=True)
class BlockPlan(DerivePlan):
    """The plan of a derivation by shards, or of the whole box in memory.

    Parameters
    ----------
    halo : int
        Cells around a shard that its task also reads.
    """

    halo: int


def plan_work(store: FieldStore, work: Work, workers: int = 1) -> BlockPlan:
    """Plan the work shard by shard, or in one task if it is spectral."""
    cells = store.grid**3
    shards = len(grid_blocks(store.grid, work.shard))
    sums = shards + 1 if work.needs_background else 0
    read = sum(count_parts(name) for name, _ in work.inputs)
    haloed = cells if work.spectral else shards * (work.shard + 2 * work.halo) ** 3
    smoothed = sum(count_parts(name) for name, smoothed in work.inputs if smoothed)
    per_cell = 2e-7 * (read + work.parts)
    if not work.spectral:
        per_cell += 1e-8 * smoothed * work.halo
    return BlockPlan(
        stage="derive",
        tasks=sums + (1 if work.spectral else shards),
        unit="tasks",
        worker_memory=_box_memory(store, work) if work.spectral else _block_memory(work),
        read=4 * (haloed * read + (4 * cells if sums else 0)),
        written=4 * cells * work.parts,
        cpu_seconds=cells * per_cell,
        requests=_count_requests(store, work, shards, workers),
        fields=list(work.names),
        method=work.config.method,
        smoothing=work.config.smoothing,
        grid=store.grid,
        shard=work.shard,
        shards=shards,
        halo=work.halo,
    )


def count_background(store: FieldStore, shard: int, workers: int) -> int:
    """Return the requests that read density and momentum to find the mean flow of the box."""
    stored, axes = stored_shards(store), [axis_blocks(store.grid, shard)] * 3
    blocks = len(axes[0]) ** 3
    momentum = 3 * count_spans(stored, axes, 1, of=3)[0]
    momentum += count_distinct(3 * count_spans(stored, axes, 1, of=3)[1], stored.count, workers)
    # A task reads the metadata of the group and of both variables.
    return momentum + count_reads(stored, axes, 1, workers=workers) + 3 * blocks


def _count_requests(store: FieldStore, work: Work, shards: int, workers: int) -> Requests:
    """Return the requests of all tasks and of the driver."""
    stored, blocks = stored_shards(store), axis_blocks(store.grid, work.shard)
    reads = count_background(store, work.shard, workers) if work.needs_background else 0
    plain = int(any(recipe_of(name).slopes for name in work.names))
    for name, smoothed in work.inputs:
        parts = count_parts(name)
        if work.spectral:
            reads += count_reads(stored, [[(0, store.grid)]] * 3, parts, workers=workers)
            continue
        halo = work.halo if smoothed else plain
        axes = [[(start - halo, size + 2 * halo) for start, size in blocks]] * 3
        # A smoothed vector is read one component at a time.
        times = parts if smoothed else 1
        spans, partial = count_spans(stored, axes, parts // times, of=parts)
        reads += times * spans + count_distinct(times * partial, stored.count, workers)
    names = {name for name, _ in work.inputs}
    opened = (1 + len(names)) * (1 if work.spectral else shards)
    written = count_writes(len(work.names)) * shards
    return Requests(get=reads + opened) + written + ONCE["derive"]


def _block_memory(work: Work) -> int:
    """Return the bytes of a task for one shard, a bound on measured peaks."""
    cells = work.shard**3
    haloed = (work.shard + 2) ** 3
    # The plain inputs are released before the smoothed ones are read.
    held = max(
        sum(count_parts(name) for name, smoothed in work.inputs if smoothed == kind)
        for kind in (False, True)
    )
    # One component with its whole halo, while it is read and smoothed.
    reading = 4 * (work.shard + 2 * work.halo) ** 3
    return (
        4 * (held * haloed + work.parts * cells + max(reading, _encoding(work)))
        + costs.BLOCK_OVERHEAD
    )


def _box_memory(store: FieldStore, work: Work) -> int:
    """Return the bytes of the task for the whole box."""
    cells = store.grid**3
    recipes = [recipe_of(name) for name in work.names]
    # Modes of the velocity, or the variables of a ratio; then the tensor, or modes.
    held = 3 * int(any(one.slopes for one in recipes))
    held = max([held, *(sum(map(count_parts, one.inputs)) for one in recipes if not one.slopes)])
    transforms = 9 if any(name.endswith("velocity_shear") for name in work.names) else 6
    return 4 * (cells * (held + work.parts + transforms) + _encoding(work)) + costs.BLOCK_OVERHEAD


def _encoding(work: Work) -> int:
    """Return the numbers held while shards are compressed: two fields, one being released."""
    largest = sorted((count_parts(name) for name in work.names), reverse=True)[:2]
    return int(4.5 * sum(largest) * work.shard**3)
