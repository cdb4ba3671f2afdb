"""How the work of `evaluate` is cut into tasks, and what those take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cosmoflow.numerics.blocks import Block, axis_blocks, central_boxes, grid_blocks
from cosmoflow.numerics.comparison import QUANTITIES
from cosmoflow.numerics.comparison.blocks import SHARED, coarse_cells
from cosmoflow.numerics.comparison.power import subbox_cells
from cosmoflow.numerics.comparison.slices import Patch, plane_blocks
from cosmoflow.numerics.quantities import QUANTITIES as DEFINED
from cosmoflow.stages import costs
from cosmoflow.stages.evaluate.inputs import Inputs, linear_name
from cosmoflow.stages.evaluate.requests import count_requests
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.flows.stored import LINEAR_BYTES, current_scales
from cosmoflow.stages.inputs.readers import Method
from cosmoflow.stages.requests import count_workers
from cosmoflow.stages.run import Plan, Run, memory_here, memory_of_worker
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Derived
from cosmoflow.stages.spectra import PowerPlan, plan_power
from cosmoflow.storage.fields import FieldStore
from cosmoflow.units import format_bytes

BLOCK_CELLS = 256
"""Most cells per axis of a block: its halo is read twice, and is a small part of a larger block."""

_BLOCK_BYTES, _MOMENTUM_BYTES = 52, 24
"""A cell, of a block with its halo, and more where a velocity is made of a momentum."""
_SUBBOX_BYTES = 110
"""A cell, of a sub-box."""
_PATCH_BYTES = 160
"""A cell, of the patch with its halo."""


@dataclass(frozen=True, slots=True)
class Task:
    """A measurement in a part of the box.

    Parameters
    ----------
    kind : {"cells", "subbox", "plane", "patch"}
        Sums over all cells, spectra of a sub-box, sums over the layers of the slice, or the fields
        of one method in the patch.
    block : Block
        The part of the box.
    name : str
        The method whose patch it is.
    """

    kind: Literal["cells", "subbox", "plane", "patch"]
    block: Block
    name: str = ""


@dataclass(frozen=True)
class Cut:
    """A box in tasks.

    Parameters
    ----------
    grid : int
        Cells per axis.
    block : int
        Cells per axis of a block.
    subbox : int
        Cells per axis of a sub-box, 0 where none fits.
    memory : int
        Bytes of a worker that handles the tasks.
    """

    grid: int
    block: int
    subbox: int
    memory: int

    @property
    def subbox_count(self) -> int:
        """How many sub-boxes there are, which may be too many to list for no more than a plan."""
        return (self.grid // self.subbox) ** 3 if self.subbox else 0

    def first_tasks(self) -> list[Task]:
        """Return the tasks that the strongest infall is found by, and those beside them."""
        blocks = [Task("cells", block) for block in grid_blocks(self.grid, self.block)]
        return blocks + [Task("subbox", box) for box in central_boxes(self.grid, self.subbox)]

    def last_tasks(self, patch: Patch, names: Sequence[str]) -> list[Task]:
        """Return the tasks that read what is drawn of the truth and the methods."""
        planes = [Task("plane", block) for block in plane_blocks(patch, self.block)]
        return planes + [Task("patch", patch.block, name) for name in names]

    def count_tasks(self, names: int, box_size: float) -> int:
        """Return how many there are in all."""
        patch = Patch.around((0, 0, 0), self.grid, box_size)
        blocks = len(axis_blocks(self.grid, self.block)) ** 3
        return blocks + self.subbox_count + len(self.last_tasks(patch, [""] * names))


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Plan):
    """Plan of `evaluate`.

    Parameters
    ----------
    grid : int
        Cells per axis.
    methods : list of str
        Names of the velocities that are compared with the truth.
    predictions : dict of str
        URLs of the predictions, by name.
    block : int
        Cells per axis of a block.
    subboxes : int
        Number of sub-boxes.
    linear_theory : str
        Where linear theory comes from.
    memory_of_parts : dict of str
        Memory of a worker in each part of the work.
    memory_of_this_process : str
        Memory of the process that adds up.
    cut : Cut
        The tasks.
    missing : list of float
        Radii of the linear velocities that the truth lacks, Mpc/h.
    in_memory : bool
        Whether this process makes those in its memory.
    parts : int
        Parts that tasks of the box's spectra hand to one another.
    """

    grid: int
    methods: list[str]
    predictions: dict[str, str]
    block: int
    subboxes: int
    linear_theory: str
    memory_of_parts: dict[str, str]
    memory_of_this_process: str
    cut: Cut = field(repr=False)
    missing: list[float] = field(repr=False)
    in_memory: bool = field(repr=False)
    parts: int = field(repr=False)


def lacking(true: FieldStore, radii: Sequence[float]) -> list[float]:
    """Return the radii of linear velocities that the truth does not have of its density."""
    stored = current_scales(true)
    return [radius for radius in dict.fromkeys(radii) if radius not in stored]


def plan_work(inputs: Inputs, run: Run) -> EvaluatePlan:
    """Cut a box into tasks whose workers have the memory, and plan the whole run.

    The ``worker_memory`` may be more than there is: :func:`start_engine` refuses it then.
    """
    true, config = inputs.true, run.settings.evaluate
    cells, size, radii = true.grid**3, inputs.box_size, dict.fromkeys(config.smoothing)
    # Linear theory too, wherever that will be stored.
    added = [Method(linear_name(radius), "", "linear_velocity") for radius in radii]
    methods = [*inputs.methods, *added]
    missing = lacking(true, config.smoothing)
    block = _block_cells(inputs, run)
    side = subbox_cells(true.grid, size, min(config.subbox, size))
    patch = Patch.around((0, 0, 0), true.grid, size)
    patch_bytes = _PATCH_BYTES * (patch.cells + 2) ** 2 * (patch.layers + 2)
    memory = {
        "blocks": block_memory(inputs, block),
        "subboxes": costs.EVALUATE_OVERHEAD + _SUBBOX_BYTES * side**3,
        "patch": costs.EVALUATE_OVERHEAD + patch_bytes,
    }
    cut = Cut(true.grid, block, side, max(memory.values()))
    seconds = cells * (
        len(methods) * (costs.EVALUATE_CELL + costs.SUBBOX_CELL * bool(side))
        + len(missing) * costs.LINEAR_CELL
    )
    read = cells * (4 + 12 * (1 + len(methods))) * (1 + bool(side))
    exchanged, linear, parts = 0, "stored with the truth", 0
    in_memory = LINEAR_BYTES * true.grid**3 <= memory_here(run)
    tasks = cut.count_tasks(1 + len(methods), size)
    power = power_plans(inputs, methods, run)
    for part in power:
        memory["spectra"] = max(part.worker_memory, memory.get("spectra", 0))
        exchanged, read = max(exchanged, part.exchanged), read + part.read
        seconds, tasks = seconds + part.cpu_seconds, tasks + part.tasks
        parts += part.parts
    if missing and in_memory:
        linear = "made in memory"
    elif missing:
        flow = plan_flow(Grid.of(true), ("contrast",), run)
        memory["linear theory"] = flow.worker_memory
        exchanged, linear = max(exchanged, flow.exchanged), "made slab by slab"
    return EvaluatePlan(
        stage="evaluate",
        tasks=tasks,
        unit="tasks",
        worker_memory=max(memory.values()),
        read=read,
        written=12 * cells * len(missing) + (8 << 20),
        cpu_seconds=seconds + costs.REPORT_SECONDS,
        exchanged=exchanged,
        requests=count_requests(
            {store.url: store for store in (true, *inputs.found.values())},
            list(inputs.readers(methods).values()),
            [linear_name(radius) for radius in missing],
            (block, side),
            power,
            count_workers(run),
        ),
        grid=true.grid,
        methods=[method.name for method in methods],
        predictions={name: store.url for name, store in inputs.found.items()},
        block=cut.block,
        subboxes=cut.subbox_count,
        linear_theory=linear,
        memory_of_parts={part: format_bytes(need) for part, need in memory.items()},
        memory_of_this_process=format_bytes(
            _driver_memory(inputs, cut, len(methods), makes_linear=bool(missing) and in_memory)
        ),
        cut=cut,
        missing=missing,
        in_memory=in_memory,
        parts=parts,
    )


def block_memory(inputs: Inputs, block: int) -> int:
    """Return the bytes that a task with a block of some cells per axis takes."""
    divided = any(method.variable == "momentum" for method in inputs.methods)
    return costs.EVALUATE_OVERHEAD + (_BLOCK_BYTES + _MOMENTUM_BYTES * divided) * (block + 2) ** 3


def _block_cells(inputs: Inputs, run: Run) -> int:
    """Return the largest block that every core has the memory for: of whole shards, or of chunks.

    Where even a chunk is too large, the smallest is returned, and the plan's memory shows it.
    """
    true = inputs.true
    shard, chunk = min(true.shard, true.grid), min(true.chunk, true.grid)
    # Several shards, one, or an equal part of one: no chunk is then cut by two blocks.
    sides = [shard * count for count in range(BLOCK_CELLS // shard, 0, -1)] or [shard]
    sides += [part for part in range(shard - chunk, 0, -chunk) if shard % part == 0]
    # A block of half the box at most, so that there are some to share.
    most = max(true.grid // 2, sides[-1])
    sides = [side for side in sides if side <= min(most, BLOCK_CELLS)] or sides[-1:]
    room = memory_of_worker(run)
    return next((side for side in sides if block_memory(inputs, side) <= room), sides[-1])


def power_plans(inputs: Inputs, methods: Sequence[Method], run: Run) -> list[PowerPlan]:
    """Plan the transforms of each field that the box's spectra need."""
    grid = Grid.of(inputs.true)
    readers = inputs.readers(methods).values()
    fields = dict.fromkeys(DEFINED[name].field for name in QUANTITIES.values())
    sources = ([Derived(one, grid.cell_size, field) for one in readers] for field in fields)
    return [plan_power(some, grid, run, stage="evaluate") for some in sources]


def _driver_memory(inputs: Inputs, cut: Cut, methods: int, *, makes_linear: bool) -> int:
    """Return the bytes that the process which adds up takes beyond its interpreter."""
    sums = 8 * (len(SHARED) + methods) * coarse_cells(cut.grid, inputs.box_size) ** 3
    spectra = 8 * 4 * (3 + 2 * methods) * (cut.subbox // 2) * cut.subbox_count
    made = LINEAR_BYTES * cut.grid**3 if makes_linear else 0
    return costs.EVALUATE_OVERHEAD + max(made, sums + spectra)
