"""Plan of `evaluate`: tasks, memory and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cosmoflow.model.names import SHIPPED
from cosmoflow.numerics.blocks import Triple
from cosmoflow.numerics.comparison import QUANTITIES
from cosmoflow.numerics.comparison.blocks import SHARED, coarse_cells
from cosmoflow.numerics.comparison.power import subbox_cells
from cosmoflow.numerics.comparison.slices import Patch
from cosmoflow.numerics.comparison.subboxes import HELD_BYTES
from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.stages import costs
from cosmoflow.stages.evaluate.cut import Cut
from cosmoflow.stages.evaluate.inputs import Inputs, linear_name
from cosmoflow.stages.evaluate.kept import kept_bytes
from cosmoflow.stages.evaluate.requests import count_cells_read, count_requests
from cosmoflow.stages.evaluate.shipped import NOT_COMPARED, describe_shipped
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.flows.stored import LINEAR_BYTES, current_scales
from cosmoflow.stages.infer import Shipped, count_scatter_check
from cosmoflow.stages.inputs.readers import Method
from cosmoflow.stages.requests import count_workers
from cosmoflow.stages.run import Plan, Run, memory_here, memory_of_worker
from cosmoflow.stages.slabs.plan import Grid, planned_cores
from cosmoflow.stages.spectra import plan_measurement
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.requests import Requests
from cosmoflow.units import format_bytes

BLOCK_CELLS = 512
"""Most cells per axis of a block, unless it spans an axis. A block is read with all chunks around
it, which are a small part of a large one."""
PIECE_CELLS = 256
"""Most cells per axis of what is read without a halo."""
BLOCK_CORES = 4
"""Most cores that a task for a block has, whose memory it has then too."""

_FEW_CORES = 2
"""Cores that threads of one process keep busy: in a box of 512^3 cells they did 1.7 seconds of work
a second. More cores have not been measured."""

_BLOCK_BYTES, _MOMENTUM_BYTES, _ERROR_BYTES = 52, 24, 12
"""Bytes per cell of a block with its halo, and further bytes where a momentum is divided, or where
a prediction has expected errors."""
_MODES_BYTES, _SUBBOX_BYTES = 16, 64
"""Bytes per cell of the sub-boxes of a block for the truth's modes, and of a sub-box in work."""
_PATCH_BYTES = 160
"""Bytes per cell of the patch with its halo."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Plan):
    """Plan of `evaluate`.

    Parameters
    ----------
    grid : int
        Cells per axis.
    methods : list of str
        Names of the velocities to compare with the truth.
    predictions : dict of str
        URLs of the predictions, by name.
    block : (int, int, int)
        Cells of a block along x, y and z.
    subboxes : int
        Number of sub-boxes.
    linear_theory : str
        Source of linear theory.
    shipped : str
        Whether the shipped model is compared, or why it is not.
    memory_of_parts : dict of str
        Memory of a worker in each part of the work.
    memory_of_this_process : str
        Memory of the process that adds up results.
    cut : Cut
        The tasks.
    missing : list of float
        Radii of the linear velocities that the truth lacks, Mpc/h.
    in_memory : bool
        Whether this process makes them in its memory.
    shipped_model : Shipped
        The shipped model.
    parts : int
        Parts that tasks of spectra and of linear theory hand to one another.
    kept : int
        Bytes of the fields that this process keeps in memory, if it does all the work and has the
        memory; else 0.
    """

    grid: int
    methods: list[str]
    predictions: dict[str, str]
    block: Triple
    subboxes: int
    linear_theory: str
    shipped: str
    memory_of_parts: dict[str, str]
    memory_of_this_process: str
    cut: Cut = field(repr=False)
    missing: list[float] = field(repr=False)
    in_memory: bool = field(repr=False)
    shipped_model: Shipped = field(repr=False)
    parts: int = field(repr=False)
    kept: int = field(repr=False)


def lacking(true: FieldStore, radii: Sequence[float]) -> list[float]:
    """Return the radii of linear velocities that the truth does not store."""
    stored = current_scales(true)
    return [radius for radius in dict.fromkeys(radii) if radius not in stored]


def plan_work(inputs: Inputs, run: Run, shipped: Shipped = NOT_COMPARED) -> EvaluatePlan:
    """Cut a box into tasks that fit into the memory of workers, and plan the whole run.

    If the ``worker_memory`` exceeds the available memory, :func:`start_engine` refuses the plan.
    """
    true, config = inputs.true, run.settings.evaluate
    cells, size, radii = true.grid**3, inputs.box_size, dict.fromkeys(config.smoothing)
    # Linear theory is compared too, wherever it will be stored.
    added = [
        Method(linear_name(radius), true.url, "linear_velocity", radius=radius) for radius in radii
    ]
    predicted = [SHIPPED] if shipped.model is not None else []
    methods = [*inputs.methods, *(Method(name, true.url) for name in predicted), *added]
    missing = lacking(true, config.smoothing)
    cut = _choose_cut(inputs, run)
    patch = Patch.around((0, 0, 0), true.grid, size)
    patch_bytes = _PATCH_BYTES * (patch.cells + 2) ** 2 * (patch.layers + 2)
    memory = {"blocks": cut.memory, "patch": costs.EVALUATE_OVERHEAD + patch_bytes}
    cut = replace(cut, memory=max(memory.values()))
    inside = (cut.along * cut.subbox) ** 3
    compared = 1 + len(methods)
    once = cells * (4 + 12 * compared)
    # Of the comparison itself, if its tasks read the stores; the rest of the work is the same.
    read = count_cells_read(true, cut) * (4 + 12 * compared)
    again = (read - once) // 4
    streamed = compared * (cells * costs.EVALUATE_CELL + inside * costs.SUBBOX_CELL)
    streamed += again * costs.MOVE_NUMBER
    errors = cells * sum(method.intervals is not None for method in methods)
    rest, read_for_rest = costs.REPORT_SECONDS + errors * costs.ERROR_CELL, 12 * errors
    rest, read_for_rest = (
        rest + shipped.seconds(true.grid),
        read_for_rest + 4 * cells * len(predicted),
    )
    exchanged, linear, parts = 0, "stored with the truth", 0
    in_memory = LINEAR_BYTES * true.grid**3 <= memory_here(run)
    tasks = cut.count_tasks(1 + len(methods), size)
    threads, grid = 1, Grid.of(true)
    readers = list(inputs.readers(methods).values())
    power = plan_measurement(readers, tuple(QUANTITIES.values()), grid, run)
    for part in power:
        memory["spectra"] = max(part.worker_memory, memory.get("spectra", 0))
        threads = max(threads, part.threads)
        exchanged, read = max(exchanged, part.exchanged), read + part.read
        streamed, tasks = streamed + part.cpu_seconds, tasks + part.tasks
        parts += part.parts
    if missing and in_memory:
        linear = "made in memory"
        rest += len(missing) * cells * costs.LINEAR_CELL
    elif missing:
        flow = plan_flow(grid, ("contrast",), run)
        memory["linear theory"] = flow.worker_memory
        exchanged, linear = max(exchanged, flow.exchanged), "made in slabs"
        rest, tasks = rest + len(missing) * flow.cpu_seconds, tasks + len(missing) * flow.tasks
        read_for_rest, parts = (
            read_for_rest + len(missing) * flow.read,
            parts + len(missing) * flow.parts,
        )
    in_one_go = bool(missing) and in_memory
    # If the fields fit into this process, and it has little enough to do, each is read once.
    in_one = rest + compared * cells * costs.KEPT_CELL
    alone = seconds_for_ray(in_one, run)
    kept = kept_bytes(readers, true.grid)
    needed = max(memory.values()) + exchanged + kept
    if needed > memory_here(run) or run.session.wants_ray(alone, memory=needed):
        kept = 0
    return EvaluatePlan(
        stage="evaluate",
        tasks=tasks,
        unit="tasks",
        worker_memory=max(memory.values()),
        read=read_for_rest + (once if kept else read),
        written=12 * cells * (len(missing) + len(predicted)) + (8 << 20),
        cpu_seconds=in_one if kept else rest + streamed,
        exchanged=exchanged,
        requests=count_requests(
            {store.url: store for store in (true, *inputs.found.values())},
            readers,
            [*predicted, *(linear_name(radius) for radius in missing)],
            cut,
            power,
            count_workers(run),
            kept=bool(kept),
        )
        + Requests(get=count_scatter_check(true) if shipped.sampled else 0),
        grid=true.grid,
        methods=[method.name for method in methods],
        predictions={name: store.url for name, store in inputs.found.items()},
        block=cut.block,
        subboxes=cut.along**3,
        linear_theory=linear,
        shipped=describe_shipped(shipped),
        memory_of_parts={part: format_bytes(need) for part, need in memory.items()},
        memory_of_this_process=format_bytes(
            max(
                shipped.memory(true.grid),
                kept + _driver_memory(inputs, cut, len(methods), makes_linear=in_one_go),
            )
        ),
        cut=cut,
        missing=missing,
        in_memory=in_memory,
        shipped_model=shipped,
        parts=parts,
        threads=threads,
        kept=kept,
    )


def seconds_for_ray(cpu_seconds: float, run: Run) -> float:
    """Return the work that decides whether Ray is started: none on a machine with few cores."""
    return 0.0 if run.session.engine(0.0).cpus <= _FEW_CORES else cpu_seconds


def block_memory(inputs: Inputs, cut: Cut) -> int:
    """Return the bytes of a task with the largest block, and the spectra of its sub-boxes."""
    divided = any(method.variable == "momentum" for method in inputs.methods)
    errors = any(method.intervals is not None for method in inputs.methods)
    each = _BLOCK_BYTES + _MOMENTUM_BYTES * divided + _ERROR_BYTES * errors
    cells = math.prod(size + 2 for size in cut.largest())
    boxes = 0
    if cut.subbox:
        inside = math.prod(size // cut.subbox for size in cut.largest())
        working = min(inside, MOST_THREADS + 1) * _SUBBOX_BYTES
        boxes = (_MODES_BYTES * inside + working) * cut.subbox**3
    return costs.EVALUATE_OVERHEAD + each * cells + boxes


def _choose_cut(inputs: Inputs, run: Run) -> Cut:
    """Return the division of the box for which the fewest chunks are read.

    Blocks consist of whole sub-boxes, so that both share a reading; or, without sub-boxes, of whole
    shards, or of whole chunks of one. There are two for every core if possible, or one for several
    where there are many, and the memory for each. Blocks that span the box along an axis take half
    of that memory at most.
    """
    true = inputs.true
    grid, size = true.grid, inputs.box_size
    shard, chunk = min(true.shard, grid), min(true.chunk, grid)
    subbox = subbox_cells(grid, size, min(run.settings.evaluate.subbox, size))
    # Several shards, one, or an equal part of one: no chunk is then cut by two pieces.
    sides = [shard * count for count in range(BLOCK_CELLS // shard, 0, -1)] or [shard]
    sides += [part for part in range(shard - chunk, 0, -chunk) if shard % part == 0]
    piece = next((side for side in sides if side <= min(grid // 2, PIECE_CELLS)), sides[-1])
    if subbox:
        along = grid // subbox
        sides = [subbox * n for n in range(min(along, max(1, BLOCK_CELLS // subbox)), 0, -1)]
    most = max(grid // 2, sides[-1])
    sides = [side for side in sides if side <= min(most, BLOCK_CELLS)] or sides[-1:]
    room = memory_of_worker(run) * min(planned_cores(run), BLOCK_CORES)
    cpus = run.session.engine(0.0).cpus
    least = max(min(2 * cpus, 64), cpus // (2 * BLOCK_CORES))

    def rank(cut: Cut) -> tuple[bool, int, int]:
        few = math.prod(len(axis) for axis in cut.axes()) < least
        return few, count_cells_read(true, cut), block_memory(inputs, cut)

    best, found = Cut(grid, (sides[-1],) * 3, piece, subbox), []
    for side in sides:
        for x, y, z in ((side,) * 3, (side, side, grid), (side, grid, grid)):
            cut = replace(best, block=(x, y, z))
            if block_memory(inputs, cut) <= (room // 2 if z == grid else room):
                found.append(cut)
    best = min(found, key=rank, default=best)
    return replace(best, memory=block_memory(inputs, best))


def _driver_memory(inputs: Inputs, cut: Cut, methods: int, *, makes_linear: bool) -> int:
    """Return the bytes that the process that adds up results takes beyond its interpreter.

    Sums over coarse cells count twice: those of blocks that wait for their turn are no larger.
    """
    sums = 2 * 8 * (len(SHARED) + methods) * coarse_cells(cut.grid, inputs.box_size) ** 3
    made = LINEAR_BYTES * cut.grid**3 if makes_linear else 0
    return costs.EVALUATE_OVERHEAD + max(made, sums + HELD_BYTES)
