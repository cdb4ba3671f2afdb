"""Import of a density cube, from a file or from memory, into a fields store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.loading import revise_settings
from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Resources, Session, TaskGraph
from cosmoflow.errors import DataError
from cosmoflow.events import Message, StageFinished
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.stages import costs
from cosmoflow.stages.imports.request import (
    VECTORS,
    Quantity,
    Request,
    Scaling,
    assumed_of,
    check_request,
    open_request,
    settle,
)
from cosmoflow.stages.inputs.density import DENSITY_CHECKSUMS, Summary, checksum_densities
from cosmoflow.stages.inputs.notes import tell_assumed
from cosmoflow.stages.inputs.paintings import Painting
from cosmoflow.stages.run import Plan, Progress, Run, claiming, start_engine
from cosmoflow.storage.cube_files import WITHIN
from cosmoflow.storage.cubes import IN_MEMORY, Cube, Order, cube_of, digest_array, store_array
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.fields import open_fields
from cosmoflow.storage.ledger import begin_counts, sum_counts, write_count
from cosmoflow.storage.metadata import SAMPLING, BoxMetadata, make_provenance, note_rms
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.sampling import UNKNOWN, Sampling
from cosmoflow.storage.urls import absolute, open_group_for_writing
from cosmoflow.units import SPEED_OF_LIGHT


@dataclass(frozen=True, kw_only=True)
class ImportPlan(Plan):
    """Plan of `import`.

    Parameters
    ----------
    grid : int
        Cells per axis.
    cell_size : float
        Side of a cell, Mpc/h.
    fields : list of str
        Variables to write.
    type : str
        Data type of the density cube.
    """

    grid: int
    cell_size: float
    fields: list[str]
    type: str


def import_fields(
    cube: str,
    out: str,
    run: Run | None = None,
    *,
    box_size: float,
    redshift: float,
    quantity: Quantity | None = None,
    velocity: str | None = None,
    momentum: str | None = None,
    order: Order | None = None,
) -> xr.Dataset:
    """Import a density cube from a file into a fields store, like ``cosmoflow import``.

    Parameters
    ----------
    cube : str
        Local file with an array of shape ``(n, n, n)``: NumPy (``.npy``, ``.npz``), HDF5, FITS or
        netCDF. If the file holds several arrays, ``FILE::NAME`` selects one.
    out : str
        URL of the fields store to write.
    run : Run, optional
        Settings (section ``cosmology``; ``shard`` and ``chunk`` of ``paint``), engine, progress.
    box_size : float
        Side of the box, Mpc/h.
    redshift : float
        Redshift of the density.
    quantity : {"density", "delta", "counts"}, optional
        Quantity in the cube: ``density`` is 1 + delta, ``counts`` is anything proportional to mass.
        By default it is inferred from the values; values that fit no quantity are refused.
    velocity, momentum : str, optional
        Files like ``cube`` with the velocity v and the momentum ``(1 + delta) v``, km/s, shape
        ``(3, n, n, n)`` or ``(n, n, n, 3)``.
    order : {"C", "F"}, optional
        Order of the axes: the slowest axis of the array, as NumPy reads it, is x (C), or z (F) as
        in files that Fortran or IDL wrote. By default the order that the file states, else C.

    Returns
    -------
    xr.Dataset
        The fields, lazy.

    Raises
    ------
    DataError
        A file is damaged or holds no such cube, or the values of a cube are invalid.
    ConfigError, OutputExistsError, StorageError
    """
    files = {"density": cube, "velocity": velocity, "momentum": momentum}
    request = open_request(
        files, box_size=box_size, redshift=redshift, quantity=quantity, order=order
    )
    return import_request(request, out, run or Run())


def store_density(
    density: ArrayLike,
    out: str,
    run: Run | None = None,
    *,
    box_size: float,
    redshift: float,
    quantity: Quantity | None = None,
    velocity: ArrayLike | None = None,
    momentum: ArrayLike | None = None,
    cosmology: CosmologyConfig | None = None,
) -> xr.Dataset:
    """Write a density in memory to a fields store.

    Parameters
    ----------
    density : array_like
        Density, shape ``(n, n, n)``.
    out, run, box_size, redshift, quantity
        See :func:`import_fields`.
    velocity, momentum : array_like, optional
        Velocity and momentum, km/s, shape ``(3, n, n, n)`` or ``(n, n, n, 3)``.
    cosmology : CosmologyConfig, optional
        Cosmology of the box; by default that of the settings.

    Returns
    -------
    xr.Dataset
        The fields, lazy.

    Raises
    ------
    DataError, ConfigError, OutputExistsError, StorageError
    """
    run = run or Run()
    if cosmology is not None:
        settings = run.settings.model_copy(update={"cosmology": cosmology})
        run = replace(run, settings=settings)
    given = {"density": density, "velocity": velocity, "momentum": momentum}
    arrays = {
        name: store_array(one, f"the {name} array")
        for name, one in given.items()
        if one is not None
    }
    cubes = {
        name: cube_of(stored, f"the {name} array", None, vector=name in VECTORS)
        for name, (_, stored) in arrays.items()
    }
    digests = {name: digest_array(one, stored.names) for name, (one, stored) in arrays.items()}
    sources = dict.fromkeys(arrays, IN_MEMORY)
    request = Request(cubes, digests, sources, box_size, redshift, quantity, None)
    check_request(request)
    return import_request(request, out, run)


def _cells(request: Request, run: Run) -> tuple[int, int]:
    """Return the cells per axis of a shard and of a chunk, as `paint` would choose them.

    Raises
    ------
    ConfigError
        The stated chunk does not divide the shard of this grid.
    """
    settings = revise_settings(run.settings, {"paint": {"grid": request.grid}})
    config = settings.paint
    return config.shard_cells, config.chunk_cells


def plan_import(request: Request, run: Run) -> ImportPlan:
    """Plan :func:`import_request`."""
    shard, _ = _cells(request, run)
    cells = request.grid**3
    parts = {name: 3 if name in VECTORS else 1 for name in request.cubes}
    read = sum(parts[name] * cube.itemsize for name, cube in request.cubes.items())
    written = 4 * sum(parts.values())
    return ImportPlan(
        stage="import",
        tasks=len(grid_blocks(request.grid, shard)),
        unit="shards",
        # Values as they are read (double precision), as float32, and encoded.
        worker_memory=costs.OVERHEAD + (read + 8 * sum(parts.values()) + 2 * written) * shard**3,
        # The cubes are read twice; the first pass checks and summarises their values.
        read=2 * read * cells,
        written=written * cells,
        cpu_seconds=(2 * read + written) * cells * costs.IMPORT_BYTE,
        grid=request.grid,
        cell_size=request.box_size / request.grid,
        fields=sorted(request.cubes),
        type=request.cubes["density"].stored.dtype,
    )


def import_request(request: Request, out: str, run: Run) -> xr.Dataset:
    """Write the cubes of a request to a fields store; see :func:`import_fields`."""
    out, request = absolute(out), request.hashed()
    files = [place.partition(WITHIN)[0] for place in request.sources.values()]
    check_output(out, run.existing, files)
    if request.in_memory:
        run = replace(run, session=Session(EngineConfig(choice="serial")))
    plan = plan_import(request, run)
    engine = start_engine(run, plan, remedy="a smaller paint.shard")
    shard, chunk = _cells(request, run)
    blocks = grid_blocks(request.grid, shard)
    needs = Resources(memory=plan.worker_memory)
    graph = TaskGraph()
    graph.add("look", partial(look_task, request.cubes, blocks), range(len(blocks)), output=True)
    summaries = engine.run(graph, needs=needs)
    found = reduce(Summary.__add__, (summaries[key] for key in graph.outputs))
    scaling, notes = settle(request, found)
    notes += assumed_of(request)
    for note in notes:
        run.listener(Message(note))
    notes += tell_assumed(run.settings.cosmology.assumed, run.listener)
    provenance = make_provenance(
        "import",
        {
            "box_size": request.box_size,
            "redshift": request.redshift,
            "quantity": request.quantity,
            "order": request.order,
            **run.settings.resolved("cosmology"),
            "shard": shard,
        },
        request.digests,
        sources=request.sources,
        notes=notes,
        facts=(Painting() if scaling.particles_per_cell is None else Painting("ngp")).as_facts(),
    )
    metadata = BoxMetadata(
        request.box_size, request.redshift, run.settings.cosmology, provenance=provenance
    )
    with claiming(out, run) as claim:
        names, existing = tuple(sorted(request.cubes)), run.existing
        finished = create_fields(
            out, metadata, request.grid, names, shard=shard, chunk=chunk, existing=existing
        )
        begin_counts(out, len(blocks))
        todo = np.flatnonzero(~finished).tolist()
        done = len(blocks) - len(todo)
        progress = Progress(run.listener, "import", len(blocks), "shards", done, claim=claim)
        graph = TaskGraph()
        task = partial(import_task, request.cubes, scaling, out, provenance["digest"], blocks)
        graph.add("import", task, todo, output=True)
        if todo:
            engine.run(graph, lambda key, result: progress.advance(), needs=needs)
        if not finished_shards(out).all():
            raise RuntimeError(f"{out}: the graph ended with unfinished shards")
        request.check_unchanged()
        found, _, squares = sum_counts(out)
        empty, particles = found / request.grid**3, scaling.particles_per_cell
        equal = None if particles is None else True
        sampling = Sampling(particles, empty, UNKNOWN, equal_masses=equal)
        facts = {
            SAMPLING: sampling.to_attribute(),
            DENSITY_CHECKSUMS: checksum_densities(out),
            **note_rms(squares, request.grid, names),
        }
        claim.check()
        finish_group(open_group_for_writing(out), facts)
    run.listener(StageFinished("import", {"out": out, **plan.details}))
    return open_fields(out)


def look_task(cubes: Mapping[str, Cube], blocks: Sequence[Block], shard: int) -> Summary:
    """Summarise the density of one shard, and refuse invalid vectors.

    Raises
    ------
    DataError
    """
    block = blocks[shard]
    for name, cube in cubes.items():
        if name in VECTORS:
            where = f"{cube.where}, {block.shape} cells from {block.origin}"
            _check_vector(cube.read(_part(block)), name, where)
    return Summary.of(cubes["density"].read(_part(block)))


def import_task(
    cubes: Mapping[str, Cube],
    scaling: Scaling,
    out: str,
    digest: str,
    blocks: Sequence[Block],
    shard: int,
) -> int:
    """Read the cubes in one shard, and write the shard."""
    block = blocks[shard]
    fields: dict[str, NDArray[np.float32]] = {}
    for name, cube in cubes.items():
        values = cube.read(_part(block))
        if name == "density":
            values = np.maximum(values.astype(np.float64) / scaling.unit + scaling.offset, 0.0)
        fields[name] = np.ascontiguousarray(values, np.float32)
    empty, velocity = int((fields["density"] == 0.0).sum()), fields.get("velocity")
    write_count(out, shard, empty, velocity=velocity, digest=digest)
    write_block(out, block, shard, fields, digest=digest)
    return shard


def _check_vector(values: NDArray[Any], name: str, where: str) -> None:
    """Refuse values that are not finite, and velocities above the speed of light."""
    if bad := int(values.size - np.isfinite(values).sum()):
        raise DataError(
            f"the {name} holds values that are not finite",
            where=where,
            value=f"{bad} of {values.size}",
            limit="finite values, km/s",
            remedy="set cells without mass to 0 before you import the file",
        )
    fastest = float(abs(values).max())
    if name == "velocity" and fastest > SPEED_OF_LIGHT:
        raise DataError(
            "the velocity is above the speed of light",
            where=where,
            value=f"{fastest:g} km/s",
            limit=f"{SPEED_OF_LIGHT:g} km/s",
            remedy="velocities are in km/s: convert the file",
        )


def _part(block: Block) -> tuple[slice, ...]:
    return tuple(
        slice(origin, origin + length)
        for origin, length in zip(block.origin, block.shape, strict=True)
    )
