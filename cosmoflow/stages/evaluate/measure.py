"""Measurement of the figures of a report: tasks over the stores, and the sums of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cosmoflow.config.settings import choose_chunk
from cosmoflow.engine import Engine, keeping_freed_buffers
from cosmoflow.errors import StorageError
from cosmoflow.events import Message
from cosmoflow.numerics.blocks import Block, grid_blocks, grow, place
from cosmoflow.numerics.comparison import QUANTITIES, Comparison, Measured
from cosmoflow.numerics.comparison.blocks import BlockSum, sum_block
from cosmoflow.numerics.comparison.coarse import CoarseSum
from cosmoflow.numerics.comparison.power import GroupSums
from cosmoflow.numerics.comparison.readers import TRUTH, Array
from cosmoflow.numerics.comparison.slices import patch_planes, sum_plane
from cosmoflow.numerics.comparison.subboxes import Subboxes, SubboxSums
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.wiener import LinearTheory
from cosmoflow.stages.evaluate.cut import Cut, Task
from cosmoflow.stages.evaluate.inputs import Inputs, linear_name
from cosmoflow.stages.evaluate.kept import keep
from cosmoflow.stages.evaluate.plan import EvaluatePlan
from cosmoflow.stages.evaluate.shipped import shipped_methods
from cosmoflow.stages.flows.slabs import add_flow
from cosmoflow.stages.flows.stored import current_scales
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.readers import Method, StoreReader, Vector
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.spectra import measure_power
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.field_writing import create_fields
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import adding_linear_velocity
from cosmoflow.storage.origins import LINEAR
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.reopening import reopen_fields
from cosmoflow.storage.urls import (
    exists,
    join,
    local_path,
    open_group_for_writing,
    remove,
    storage_errors,
)

Found = BlockSum | CoarseSum | tuple[BlockSum, SubboxSums | None] | dict[str, Array]
"""Result of a task."""

SCRATCH = "linear.zarr"
"""Store inside the report's folder for linear theory during the comparison."""


def measure(
    inputs: Inputs, out: str, plan: EvaluatePlan, engine: Engine, run: Run, claim: Claim
) -> Comparison:
    """Compare the stores, and what is made for it in the claimed folder ``out`` during the run.

    Raises
    ------
    DataError
        A field is damaged or holds values that are not finite.
    """
    true, cut = inputs.true, plan.cut
    # Before any measurement, so that a store with an unknown scheme is refused at once.
    scheme = painting_of(true).scheme
    size = inputs.box_size
    with (
        shipped_methods(true, plan.shipped_model, out, run, claim) as shipped,
        linear_methods(true, plan, out, run, claim) as linear,
        closing(Subboxes(true.grid, cut.subbox, str(local_path(out)))) as subboxes,
    ):
        own = [_with_background(method, cut, engine) for method in inputs.methods]
        readers = inputs.readers([*own, *shipped, *linear])
        # Ray may have been started by another stage: its workers read for themselves.
        kept = bool(plan.kept) and engine.name == "serial"
        if kept:
            readers = keep(readers)
        names = tuple(readers)
        rate = growth_rate_hubble(true.metadata)
        make_worker = partial(Worker, readers, rate, cut.subbox)
        total = Measured.zero(true.grid, size, names[1:], scheme, subboxes)
        count = cut.count_tasks(len(names), size)
        progress = Progress(run.listener, "evaluate", count, "tasks", claim=claim)

        def run_all(tasks: list[Task]) -> None:
            order = InOrder(lambda number, found: _add(total, tasks[number], found))

            def done(task: tuple[int, Task], found: Found) -> None:
                number, one = task
                with storage_errors(out):
                    rest = _take(total, one, found)
                if rest is not None:
                    order(number, rest)
                progress.advance()

            numbered = list(enumerate(tasks))
            engine.map(make_worker, numbered, done, name="evaluate", memory=cut.memory)

        run_all(cut.first_tasks())
        run_all(cut.last_tasks(total.find_patch(), names))
        total.box = measure_power(
            readers,
            tuple(QUANTITIES.values()),
            Grid.of(true),
            run,
            rate=rate,
            window=total.window,
            in_memory=kept,
            check=claim.check,
        )
        claim.check()
        return total.comparison()


def _with_background(method: Method, cut: Cut, engine: Engine) -> Method:
    """Return the method with the mean momentum of its box, if its store has no velocity."""
    if method.variable != "momentum":
        return method
    blocks = grid_blocks(cut.grid, cut.piece)
    return replace(method, background=mean_momentum(engine, method, blocks, cut.memory))


def _take(total: Measured, task: Task, found: Any) -> Any:
    """Add what does not depend on the order of tasks; return the rest, or None."""
    match task.kind:
        case "cells":
            cells, boxes = found
            if task.group is not None:
                total.subboxes.put(task.group, boxes)
            return total.cells.count(cells)
        case "plane":
            return found
        case "patch":
            total.patch[task.name] = found
    return None


def _add(total: Measured, task: Task, found: Any) -> None:
    """Add the sums of a task; tasks come in their order."""
    if task.kind == "cells":
        total.cells.add(found)
    else:
        total.plane.add(found)


@dataclass(frozen=True)
class Worker:
    """Handles the tasks of one process.

    Parameters
    ----------
    readers : dict of StoreReader
        Reader of the truth, then readers of the methods.
    rate : float
        ``f a H``, km/s per Mpc/h.
    subbox : int
        Cells per axis of a sub-box.
    """

    readers: dict[str, StoreReader]
    rate: float
    subbox: int

    def __call__(self, numbered: tuple[int, Task]) -> Found:
        """Return the result of a numbered task."""
        _, task = numbered
        match task.kind:
            case "cells":
                return self._sum_cells(task)
            case "plane":
                return sum_plane(self.readers, task.block)
            case "patch":
                return patch_planes(self.readers[task.name], task.block)

    def _sum_cells(self, task: Task) -> tuple[BlockSum, SubboxSums | None]:
        """Return the sums over the cells of a block, and the spectra of its sub-boxes."""
        if task.group is None:
            return sum_block(self.readers, task.block, self.rate), None
        truth = self.readers[TRUTH]
        boxes = GroupSums(task.group, self.subbox, truth.box_size / truth.grid)
        inner = (..., *place(task.group, grow(task.block, 1)))
        cells = sum_block(
            self.readers,
            task.block,
            self.rate,
            lambda density, velocity: boxes.add(density[inner], velocity[inner]),
        )
        return cells, boxes.total()


class InOrder:
    """Passes results on in the order of their numbers.

    Sums of float64 depend on the order of their terms. In this order a run on many workers gives
    the same digits as a run on one. A result that comes before its turn waits.

    Parameters
    ----------
    take : callable
        Called with the number and the result.
    """

    def __init__(self, take: Callable[[int, Found], None]) -> None:
        self._take = take
        self._waiting: dict[int, Found] = {}
        self._next = 0

    def __call__(self, number: int, result: Found) -> None:
        """Take a result, and pass on those whose turn it is."""
        self._waiting[number] = result
        while self._next in self._waiting:
            self._take(self._next, self._waiting.pop(self._next))
            self._next += 1


def sum_momentum(url: str, block: Block) -> tuple[ExactSum, ...]:
    """Add up the components of the momentum over a block, exactly."""
    store = reopen_fields(url, "momentum")
    return tuple(
        ExactSum.of(store.read_block("momentum", block, lead=(axis,))) for axis in range(3)
    )


def mean_momentum(engine: Engine, method: Method, blocks: Sequence[Block], memory: int) -> Vector:
    """Return the mean momentum of a box, km/s: its mean flow, because the mean density is 1."""
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
    """Provide the linear velocities of the truth's density while the ``with`` block runs.

    The truth is only read. Missing velocities are made in a scratch store inside the output, in
    memory or in slabs on the engine, which is deleted at the end, also after an error.

    Yields
    ------
    list of Method
        One method for each radius, in the order of the radii.

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
            lead = (scales.index(radius),)
            methods.append(Method(linear_name(radius), url, LINEAR, lead, radius=radius))
        yield methods
    finally:
        # An error here must not hide the error that ends the run.
        with suppress(StorageError):
            if claim.holds() and exists(scratch):
                remove(scratch)


def _make(true: FieldStore, plan: EvaluatePlan, scratch: str, run: Run, claim: Claim) -> None:
    shard = min(true.shard, true.grid)
    chunk = choose_chunk(shard)
    if exists(scratch):
        remove(scratch)
    # The density is never written, but a fields store must have a variable from the start.
    create_fields(scratch, true.metadata, true.grid, ("density",), shard=shard, chunk=chunk)
    finish_group(open_group_for_writing(scratch))
    if plan.in_memory:
        _make_in_memory(true, plan.missing, scratch, claim)
        return
    rate = growth_rate_hubble(true.metadata)
    for radius in plan.missing:
        run.listener(Message(f"linear velocity, smoothed at {radius:g} Mpc/h"))
        adding = adding_linear_velocity(scratch, radius)
        add_flow(true, LinearTheory(radius), rate, adding, run, claim=claim)


@keeping_freed_buffers()
def _make_in_memory(true: FieldStore, radii: Sequence[float], scratch: str, claim: Claim) -> None:
    size, rate = true.metadata.box_size, growth_rate_hubble(true.metadata)
    density = torch.from_numpy(true.read("density"))
    for radius in radii:
        with adding_linear_velocity(scratch, radius) as array:
            array.write(LinearTheory(radius).velocity(density, size, rate).numpy())
        claim.check()
