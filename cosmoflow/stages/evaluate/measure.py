"""Measuring what a report says: tasks over the stores, and the sums that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from cosmoflow.config.settings import choose_chunk
from cosmoflow.engine import Engine
from cosmoflow.errors import StorageError
from cosmoflow.events import Message
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.numerics.comparison import QUANTITIES, Comparison, Measured
from cosmoflow.numerics.comparison.blocks import BlockSum, coarse_cells, sum_block
from cosmoflow.numerics.comparison.coarse import CoarseSum
from cosmoflow.numerics.comparison.power import sum_subbox
from cosmoflow.numerics.comparison.readers import Array
from cosmoflow.numerics.comparison.result import find_patch
from cosmoflow.numerics.comparison.slices import patch_planes, plane_cells, sum_plane
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.spectra import WINDOWS, PowerSum
from cosmoflow.numerics.wiener import LinearTheory
from cosmoflow.stages.evaluate.inputs import Inputs, linear_name
from cosmoflow.stages.evaluate.plan import (
    BlockTask,
    Cut,
    EvaluatePlan,
    PatchTask,
    PlaneTask,
    SubboxTask,
    Task,
)
from cosmoflow.stages.flows.slabs import add_flow
from cosmoflow.stages.flows.stored import current_scales
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.readers import Method, StoreReader, Vector, painted_scheme
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.spectra import measure_power
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore, create_fields
from cosmoflow.storage.flows import adding_linear_velocity
from cosmoflow.storage.origins import LINEAR
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import exists, join, open_group_for_writing, remove

R = TypeVar("R")

Found = BlockSum | CoarseSum | dict[str, PowerSum] | dict[str, Array]
"""Result of a task."""

SCRATCH = "linear.zarr"
"""The store inside the report's folder that linear theory is kept in while it is compared."""


def measure(
    inputs: Inputs, out: str, plan: EvaluatePlan, engine: Engine, run: Run, claim: Claim
) -> Comparison:
    """Compare the stores.

    Parameters
    ----------
    inputs : Inputs
        The stores.
    out : str
        URL of the folder that holds linear theory during the run.
    plan : EvaluatePlan
        The tasks.
    engine : Engine
        The engine.
    run : Run
        Settings, progress.
    claim : Claim
        On the folder.

    Raises
    ------
    DataError
        A field is damaged or holds values that are not finite.
    """
    true, cut = inputs.true, plan.cut
    # Before anything is measured: a store that says nonsense is refused at once.
    scheme = painted_scheme(true)
    grid, size = true.grid, inputs.box_size
    with linear_methods(true, plan, out, run, claim) as linear:
        own = [_with_background(method, cut, engine) for method in inputs.methods]
        readers = inputs.readers([*own, *linear])
        names = tuple(readers)
        make_worker = partial(Worker, readers, growth_rate_hubble(true.metadata))
        total = Totals(
            BlockSum.zero(names, coarse_cells(grid, size)),
            CoarseSum.zero(1 + 3 * len(names), plane_cells(grid), axes=2),
        )
        count = cut.count_tasks(len(names), size)
        progress = Progress(run.listener, "evaluate", count, "tasks", claim=claim)

        def run_all(tasks: list[Task]) -> None:
            run_tasks(engine, make_worker, tasks, total.take, progress.advance, cut.memory)

        run_all(cut.first_tasks())
        run_all(cut.last_tasks(find_patch(total.cells, grid, size), names))
        window = WINDOWS[scheme] if scheme is not None else 0
        box = measure_power(
            readers,
            tuple(QUANTITIES.values()),
            Grid.of(true),
            run,
            window=window,
            check=claim.check,
        )
    claim.check()
    return Measured(
        grid, size, names[1:], total.cells, total.plane, total.patch, total.subboxes, box, scheme
    ).comparison()


def _with_background(method: Method, cut: Cut, engine: Engine) -> Method:
    """Find the mean momentum of a prediction that holds no velocity."""
    if method.variable != "momentum":
        return method
    blocks = grid_blocks(cut.grid, cut.block)
    return replace(method, background=mean_momentum(engine, method, blocks, cut.memory))


@dataclass
class Totals:
    """Sums over the finished tasks.

    Parameters
    ----------
    cells : BlockSum
        Over all cells.
    plane : CoarseSum
        Over the slice.
    patch : dict
        By the truth and method.
    subboxes : list
        Spectra of every sub-box.
    """

    cells: BlockSum
    plane: CoarseSum
    patch: dict[str, dict[str, Array]] = field(default_factory=dict)
    subboxes: list[Mapping[str, PowerSum]] = field(default_factory=list)

    def take(self, task: Task, found: Any) -> None:
        """Add what a task found; the tasks come in their order."""
        match task:
            case BlockTask():
                self.cells = self.cells.add(found)
            case SubboxTask():
                self.subboxes.append(found)
            case PlaneTask():
                self.plane.add(found)
            case PatchTask(name):
                self.patch[name] = found


@dataclass(frozen=True)
class Worker:
    """Handles the tasks of one process.

    Parameters
    ----------
    readers : dict of StoreReader
        The truth's, then those of the methods.
    rate : float
        ``f a H``, km/s per Mpc/h.
    """

    readers: dict[str, StoreReader]
    rate: float

    def __call__(self, task: tuple[int, Task]) -> Found:
        """Return what a numbered task adds."""
        match task[1]:
            case BlockTask(block):
                return sum_block(self.readers, block, self.rate)
            case SubboxTask(block):
                return sum_subbox(self.readers, block)
            case PlaneTask(block):
                return sum_plane(self.readers, block)
            case PatchTask(name, patch):
                return patch_planes(self.readers[name], patch)


class InOrder(Generic[R]):
    """Passes results on in the order of their numbers.

    Sums of float64 depend on the order of their terms: in this one a run on many workers ends with
    the very numbers of a run on one. A result that comes before its turn waits.

    Parameters
    ----------
    take : callable
        Called with the number and the result.
    """

    def __init__(self, take: Callable[[int, R], None]) -> None:
        self._take = take
        self._waiting: dict[int, R] = {}
        self._next = 0

    def __call__(self, number: int, result: R) -> None:
        """Take a result, and pass on those whose turn it is."""
        self._waiting[number] = result
        while self._next in self._waiting:
            self._take(self._next, self._waiting.pop(self._next))
            self._next += 1


def run_tasks(
    engine: Engine,
    make_worker: Callable[[], Worker],
    tasks: Sequence[Task],
    take: Callable[[Task, Any], None],
    advance: Callable[[], None],
    memory: int,
) -> None:
    """Send tasks to the engine and take their results in the tasks' order.

    Parameters
    ----------
    engine : Engine
        Where they run.
    make_worker : callable
        Returns what handles them, in every process that does.
    tasks : sequence of Task
        In their order.
    take : callable
        Called with every task and its result.
    advance : callable
        Called whenever a task is done.
    memory : int
        Bytes of a worker.
    """
    order = InOrder[Found](lambda number, found: take(tasks[number], found))

    def done(task: tuple[int, Task], found: Found) -> None:
        order(task[0], found)
        advance()

    engine.map(make_worker, list(enumerate(tasks)), done, name="evaluate", memory=memory)


def sum_momentum(url: str, block: Block) -> tuple[ExactSum, ...]:
    """Add up the components of the momentum over a block, exactly."""
    store = FieldStore(url)
    return tuple(
        ExactSum.of(store.read_block("momentum", block, lead=(axis,))) for axis in range(3)
    )


def mean_momentum(engine: Engine, method: Method, blocks: Sequence[Block], memory: int) -> Vector:
    """Return the mean momentum of a box, km/s: its mean flow, the mean density being 1."""
    total = [ExactSum()] * 3

    def add(block: Block, found: tuple[ExactSum, ...]) -> None:
        for axis, one in enumerate(found):
            total[axis] += one

    engine.map(partial(_momentum_worker, method.url), blocks, add, name="momentum", memory=memory)
    cells = sum(x * y * z for x, y, z in (block.shape for block in blocks))
    x, y, z = (float(one) / cells for one in total)
    return x, y, z


def _momentum_worker(url: str) -> Callable[[Block], tuple[ExactSum, ...]]:
    return partial(sum_momentum, url)


@contextmanager
def linear_methods(
    true: FieldStore, plan: EvaluatePlan, out: str, run: Run, claim: Claim
) -> Iterator[list[Method]]:
    """Have the linear velocities of the truth's density for a while.

    The truth is only read. Missing velocities are made in a scratch store inside
    the output, in memory or slab by slab on the engine, and deleted at the end, come what may.

    Parameters
    ----------
    true : FieldStore
        With ``density``.
    plan : EvaluatePlan
        Says which radii the truth lacks, and where they are made.
    out : str
        URL of the output.
    run : Run
        Settings, engine, listener.
    claim : Claim
        On the output.

    Yields
    ------
    list of Method
        One for each radius, in their order.

    Raises
    ------
    ConfigError
        There is too little memory.
    DataError
        The density is damaged.
    """
    scratch, missing = join(out, SCRATCH), plan.missing
    try:
        if missing:
            _make(true, plan, scratch, run, claim)
        stored = current_scales(true)
        methods = []
        for radius in dict.fromkeys(run.settings.evaluate.smoothing):
            url = true.url if radius not in missing else scratch
            scales = stored if radius not in missing else missing
            methods.append(Method(linear_name(radius), url, LINEAR, (scales.index(radius),)))
        yield methods
    finally:
        # An error that ends the run is news; a scratch store that stays behind is not.
        with suppress(StorageError):
            if claim.holds() and exists(scratch):
                remove(scratch)


def _make(true: FieldStore, plan: EvaluatePlan, scratch: str, run: Run, claim: Claim) -> None:
    shard = min(true.shard, true.grid)
    chunk = choose_chunk(shard)
    if exists(scratch):
        remove(scratch)
    # Its density stays unwritten: a fields store must have a variable from the start.
    create_fields(scratch, true.metadata, true.grid, ("density",), shard=shard, chunk=chunk)
    finish_group(open_group_for_writing(scratch))
    size, rate = true.metadata.box_size, growth_rate_hubble(true.metadata)
    if not plan.in_memory:
        for radius in plan.missing:
            run.listener(Message(f"linear velocity, smoothed at {radius:g} Mpc/h"))
            adding = adding_linear_velocity(scratch, radius)
            add_flow(true, LinearTheory(radius), rate, adding, run, claim=claim)
        return
    density = torch.from_numpy(true.read("density"))
    for radius in plan.missing:
        with adding_linear_velocity(scratch, radius) as array:
            array.write(LinearTheory(radius).velocity(density, size, rate).numpy())
        claim.check()
