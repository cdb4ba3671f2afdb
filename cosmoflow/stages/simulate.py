"""N-body boxes: Gaussian initial conditions, 2LPT and COLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cosmoflow.config.settings import Settings
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.engine import TaskGraph
from cosmoflow.errors import ConfigError
from cosmoflow.events import StageFinished
from cosmoflow.model.precision import best_device
from cosmoflow.numerics import cola
from cosmoflow.numerics.initial import linear_density_modes
from cosmoflow.stages.run import Plan, Progress, Run
from cosmoflow.storage.metadata import COMPLETE, STATUS, BoxMetadata, make_provenance
from cosmoflow.storage.outputs import check_output, finish_group, mark_folder
from cosmoflow.storage.particles import ParticleStore, create_particles, write_particles
from cosmoflow.storage.urls import (
    absolute,
    exists,
    has_file,
    join,
    open_group,
    open_group_for_writing,
    remove,
)
from cosmoflow.units import CRITICAL_DENSITY

_SECONDS_PER_PARTICLE_AND_STEP = 150e-9


def box_urls(out: str, count: int) -> list[str]:
    """Return where the boxes of a run go: ``out`` itself, or ``out/box-0000.zarr`` and so on."""
    if count == 1:
        return [out]
    return [join(out, f"box-{index:04d}.zarr") for index in range(count)]


def plan_simulate(run: Run) -> Plan:
    """Say what :func:`simulate` would do."""
    config = run.settings.simulate
    particles = config.particles**3
    steps = config.steps if config.method == "cola" else 1
    return Plan(
        stage="simulate",
        tasks=config.count,
        unit="boxes",
        worker_memory=cola.peak_bytes(config.particles, config.mesh_factor),
        read=0,
        written=config.count * particles * 24,
        cpu_seconds=config.count
        * particles
        * steps
        * config.mesh_factor**2
        * _SECONDS_PER_PARTICLE_AND_STEP,
        details={
            "particles": particles,
            "box_size": config.box_size,
            "spacing": config.box_size / config.particles,
            "steps": steps,
            "mesh": config.particles * config.mesh_factor,
            "seeds": [run.settings.seed, run.settings.seed + config.count - 1],
        },
    )


def simulate(out: str, run: Run | None = None) -> list[ParticleStore]:
    """Simulate boxes of dark matter.

    Parameters
    ----------
    out : str
        URL of the particle store to write, or of a folder of them when ``simulate.count`` exceeds
        one.
    run : Run, optional
        Settings (sections ``simulate``, ``cosmology``, ``seed``), engine, progress.

    Returns
    -------
    list of ParticleStore
        The boxes, seeded ``seed``, ``seed + 1`` and so on.
    """
    run = run or Run()
    config = run.settings.simulate
    if config.particles * config.mesh_factor > 2048:
        raise ConfigError(
            "the force mesh is too large for one worker",
            where="simulate.particles, simulate.mesh_factor",
            value=config.particles * config.mesh_factor,
            limit=2048,
            remedy="fewer particles or a smaller mesh_factor; more volume comes from more boxes",
        )
    out = absolute(out)
    check_output(out, run.existing)
    plan = plan_simulate(run)
    urls = box_urls(out, config.count)
    # Fails, if it must, before there is an output.
    LinearPower.from_cosmology(run.settings.cosmology)
    if config.count > 1:
        _begin_folder(out, run)
    seeds = [run.settings.seed + index for index in range(config.count)]
    # One box has progress by the step, and all cores, in this process.
    engine = run.session.engine(plan.cpu_seconds if config.count > 1 else 0.0)
    progress = Progress(run.listener, "simulate", config.count * _ticks(run.settings), "steps")
    todo: list[tuple[str, int]] = []
    for url, seed in zip(urls, seeds, strict=True):
        if _begin_box(url, seed, run):
            progress.advance(_ticks(run.settings), f"{url} was finished before")
        else:
            todo.append((url, seed))
    if engine.name == "serial":
        for url, seed in todo:
            simulate_box(url, seed, run.settings, progress.advance)
    else:
        graph = TaskGraph()
        for index, (url, seed) in enumerate(todo):
            graph.add(("simulate", index), simulate_box, url, seed, run.settings, output=True)
        ticks = _ticks(run.settings)
        cpus = max(1, engine.cpus // len(todo)) if todo else 1
        engine.run(graph, lambda key, url: progress.advance(ticks, url), cpus=cpus)
    run.listener(StageFinished("simulate", {"out": out, **plan.details}))
    return [ParticleStore(url) for url in urls]


def _begin_folder(out: str, run: Run) -> None:
    """Prepare the folder of several boxes."""
    if has_file(out, "zarr.json") and run.existing == "resume":
        raise ConfigError(
            "there is a single box where a folder of boxes should go",
            where=out,
            remedy="another name, or --overwrite",
        )
    if run.existing == "overwrite" and exists(out):
        remove(out)
    mark_folder(out, "boxes")


def _ticks(settings: Settings) -> int:
    """Return the progress steps of one box: its time steps, and one for writing it."""
    return 1 + (settings.simulate.steps if settings.simulate.method == "cola" else 0)


def _metadata(seed: int, settings: Settings) -> BoxMetadata:
    config = settings.simulate
    volume = config.box_size**3
    mass = settings.cosmology.Omega_m * CRITICAL_DENSITY * volume / config.particles**3
    content: dict[str, Any] = settings.resolved("simulate", "cosmology")
    # How many boxes were asked for does not change this one.
    content["simulate"].pop("count")
    return BoxMetadata(
        config.box_size,
        config.redshift,
        settings.cosmology,
        mass,
        make_provenance("simulate", {"seed": seed, **content}),
    )


def _begin_box(url: str, seed: int, run: Run) -> bool:
    """Create the store of a box; tell whether an earlier run finished it."""
    metadata = _metadata(seed, run.settings)
    count = run.settings.simulate.particles**3
    resumed = create_particles(url, count, metadata, run.existing)
    return resumed and open_group(url).attrs.get(STATUS) == COMPLETE


def simulate_box(
    url: str, seed: int, settings: Settings, on_tick: Callable[[], None] | None = None
) -> str:
    """Simulate one box into a store that is there already, and mark it whole."""
    config = settings.simulate
    tick = on_tick or _no_tick
    background = Background(settings.cosmology)
    power = LinearPower.from_cosmology(settings.cosmology)
    modes = linear_density_modes(config.particles, config.box_size, power, seed)
    snapshot = cola.simulate(
        background,
        modes,
        cells=config.particles,
        box_size=config.box_size,
        steps=config.steps,
        a_start=1.0 / (1.0 + config.start_redshift),
        a_final=1.0 / (1.0 + config.redshift),
        spacing=config.spacing,
        mesh_factor=config.mesh_factor,
        method=config.method,
        device=best_device(),
        progress=lambda done, total: tick(),
    )
    write_particles(url, snapshot.position.cpu().numpy(), snapshot.velocity.cpu().numpy())
    finish_group(open_group_for_writing(url))
    tick()
    return url


def _no_tick() -> None:
    """Progress inside a Ray task stays there: the driver counts boxes."""
