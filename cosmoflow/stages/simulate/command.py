"""N-body boxes: Gaussian initial conditions, 2LPT and COLA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from cosmoflow.engine import USEFUL_CORES, Engine, TaskGraph
from cosmoflow.errors import ConfigError, OutputExistsError
from cosmoflow.events import StageFinished
from cosmoflow.numerics import cola
from cosmoflow.stages import costs
from cosmoflow.stages.run import Plan, Progress, Run, claiming, start_engine
from cosmoflow.stages.simulate.boxes import (
    Box,
    Initial,
    is_folder,
    plan_boxes,
    read_initial,
    simulate_box,
)
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.metadata import COMPLETE, INCOMPLETE
from cosmoflow.storage.outputs import OUTPUT_MARKS, check_output, is_ours, mark_folder
from cosmoflow.storage.particles import ParticleStore, shard_rows
from cosmoflow.storage.requests import Requests, count_writes
from cosmoflow.storage.urls import absolute, exists, has_file, remove


@dataclass(frozen=True, kw_only=True)
class SimulatePlan(Plan):
    """Plan of `simulate`.

    Parameters
    ----------
    particles : int
        Particles of a box.
    box_size, particle_spacing : float
        Side of a box and mean distance of neighbouring particles, Mpc/h.
    steps : int
        Time steps of a box.
    mesh : int
        Cells per axis of the mesh that forces are computed on.
    redshifts : list of float
        Redshifts of the snapshots.
    seeds : list of int
        Seeds of the boxes.
    box_sizes : list of float, optional
        Sides of the boxes, if they differ; ``box_size`` is the largest.
    """

    particles: int
    box_size: float
    particle_spacing: float
    steps: int
    mesh: int
    redshifts: list[float]
    seeds: list[int]
    box_sizes: list[float] | None = None


def plan_simulate(run: Run, boxes: list[Box] | None = None) -> SimulatePlan:
    """Plan :func:`simulate`.

    Parameters
    ----------
    run : Run
        Settings, engine.
    boxes : list of Box, optional
        The boxes, if they are known; by default those of the settings.

    Raises
    ------
    ConfigError
        A cosmology cannot be simulated.
    StorageError, DataError
        The design cannot be read.
    """
    config = run.settings.simulate
    boxes = plan_boxes("", run.settings) if boxes is None else boxes
    for box in boxes:
        _refuse_neutrinos(box)
    particles = config.particles**3
    steps = [box.settings.simulate.time_steps for box in boxes]
    snapshots = sum(len(box.snapshots) for box in boxes)
    sizes = sorted({box.settings.simulate.box_size for box in boxes})
    return SimulatePlan(
        stage="simulate",
        tasks=len(boxes),
        unit="boxes",
        worker_memory=cola.peak_bytes(config.particles, config.mesh_factor),
        read=0,
        written=particles * (24 * snapshots + 16 * len(boxes) * int(config.initial_fields)),
        cpu_seconds=sum(steps)
        * particles
        * costs.SIMULATE_PARTICLE
        * config.mesh_factor**costs.MESH_POWER,
        requests=(count_writes(2) + Requests(put=1, get=2))
        * (-(-particles // shard_rows(particles)) * snapshots),
        particles=particles,
        box_size=sizes[-1],
        particle_spacing=sizes[-1] / config.particles,
        steps=max(steps),
        mesh=config.particles * config.mesh_factor,
        redshifts=sorted({z for box in boxes for z in box.snapshots}, reverse=True),
        seeds=sorted({box.seed for box in boxes}),
        box_sizes=sizes if len(sizes) > 1 else None,
    )


def _refuse_neutrinos(box: Box) -> None:
    neutrinos = box.settings.cosmology.m_nu
    if neutrinos > 0.0:
        raise ConfigError(
            "massive neutrinos are not simulated: their free streaming is not modelled",
            where="cosmology.m_nu" if box.settings.simulate.design is None else f"{box.name}, m_nu",
            value=f"{neutrinos:g} eV",
            limit=0,
            remedy="leave it out; --set cosmology.sigma8=... sets the amplitude",
        )


def simulate(out: str, run: Run | None = None) -> list[ParticleStore]:
    """Simulate boxes of dark matter.

    Parameters
    ----------
    out : str
        URL of the particle store to write. With several boxes, several redshifts or initial fields
        it is a folder of stores: ``box-0000.zarr``, ``box-0000-z0.5.zarr``,
        ``box-0000-initial.zarr`` and so on, without the number when there is one box.
    run : Run, optional
        Settings (sections ``simulate``, ``cosmology``, ``seed``), engine, progress.

    Returns
    -------
    list of ParticleStore
        The stores, sorted by box and then by time. The boxes have the seeds ``seed``, ``seed + 1``
        and so on; the two boxes of a pair have the same seed.

    Raises
    ------
    ConfigError, DataError, StorageError
        The settings or the initial conditions are invalid, or there is too little memory; raised
        before the first box is simulated.
    """
    run = run or Run()
    settings = run.settings
    out = absolute(out)
    check_output(out, run.existing)
    boxes = plan_boxes(out, settings)
    plan = plan_simulate(run, boxes)
    initial = _read_all(boxes, run)
    engine = start_engine(
        run,
        plan,
        remedy="fewer simulate.particles or a smaller simulate.mesh_factor; "
        "more volume comes from more boxes",
        # One box uses all cores in this process; several boxes are spread over workers.
        cpu_seconds=plan.cpu_seconds if len(boxes) > 1 else 0.0,
    )
    with claiming(out, run) as claim:
        if is_folder(settings):
            _begin_folder(out, run)
        ticks = [box.settings.simulate.time_steps + 1 for box in boxes]
        progress = _BoxProgress(run, ticks)
        todo: dict[int, tuple[Box, Initial]] = {}
        for index, (box, given) in enumerate(zip(boxes, initial, strict=True)):
            if box.begin(given, run.existing):
                progress.hear((index, ticks[index], f"{box.name} was finished before"))
            else:
                todo[index] = box, given
        if todo:
            # Only now, so that a refused run leaves the mark of a complete folder unchanged.
            if is_folder(settings):
                mark_folder(out, "boxes", INCOMPLETE)
            _run_boxes(engine, todo, plan.worker_memory, progress, claim)
        if is_folder(settings):
            claim.check()
            mark_folder(out, "boxes", COMPLETE)
    run.listener(StageFinished("simulate", {"out": out, **plan.details}))
    return [ParticleStore(url) for box in boxes for url in box.snapshots.values()]


def _read_all(boxes: Sequence[Box], run: Run) -> list[Initial]:
    """Return the initial conditions of all boxes, so that errors come before the first box.

    Each row of a design is read once: its power spectrum takes seconds where CAMB makes it.
    """
    read = cache(read_initial)
    if run.settings.simulate.design is None:
        return [read(box.settings) for box in boxes]
    progress = Progress(run.listener, "initial conditions", len(boxes), "boxes")
    initial: list[Initial] = []
    for done, box in enumerate(boxes, 1):
        initial.append(read(box.settings))
        progress.reach(done, box.name)
    return initial


def _run_boxes(
    engine: Engine,
    todo: dict[int, tuple[Box, Initial]],
    memory: int,
    progress: _BoxProgress,
    claim: Claim,
) -> None:
    """Simulate each box as one task."""

    def hear(message: tuple[int, int, str]) -> None:
        progress.hear(message)
        # Messages from Ray's tasks arrive in a thread, where an error would not stop the run.
        if engine.name == "serial":
            claim.check()

    with engine.channel(hear) as send:
        graph = TaskGraph()
        graph.add("simulate", partial(_simulate, todo, send), list(todo), output=True)
        needs = engine.share(len(todo), most=USEFUL_CORES, memory=memory)
        engine.run(graph, lambda key, result: claim.check(), needs=needs)


def _simulate(
    boxes: dict[int, tuple[Box, Initial]],
    send: Callable[[tuple[int, int, str]], None],
    index: int,
) -> None:
    """Simulate the box with the given index."""
    box, initial = boxes[index]
    simulate_box(box, initial, partial(_report, send, index, box.name))


def _report(
    send: Callable[[tuple[int, int, str]], None], index: int, name: str, done: int, what: str
) -> None:
    send((index, done, f"{name}: {what}"))


class _BoxProgress:
    """Total progress of all boxes; the steps of a failed attempt no longer count."""

    def __init__(self, run: Run, ticks: list[int]) -> None:
        self._progress = Progress(run.listener, "simulate", sum(ticks), "steps")
        self._done = [0] * len(ticks)

    def hear(self, message: tuple[int, int, str]) -> None:
        """Receive a message: index of the box, number of steps done, description."""
        index, done, note = message
        self._done[index] = done
        self._progress.reach(sum(self._done), note)


def _begin_folder(out: str, run: Run) -> None:
    """Prepare the folder of several stores."""
    if has_file(out, "zarr.json") and run.existing == "resume":
        raise ConfigError(
            "there is a single box where a folder of boxes should go",
            where=out,
            remedy="another name, or --overwrite",
        )
    if run.existing == "resume" and exists(out) and not is_ours(out):
        # Marked as a folder of boxes, it could be deleted by --overwrite.
        raise OutputExistsError(
            "what is there was not made by cosmoflow, so it is not resumed",
            where=out,
            remedy="give the boxes another name",
        )
    if run.existing == "overwrite" and exists(out):
        remove(out)
    # Before the first store, so that --overwrite may replace what a killed run leaves.
    if not has_file(out, OUTPUT_MARKS[0]):
        mark_folder(out, "boxes", INCOMPLETE)
